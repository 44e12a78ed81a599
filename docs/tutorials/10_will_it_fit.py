# %% [markdown]
# # Will it fit? Plan a pod from a laptop
#
# **Question:** how many chips does UL2R of PaLM 540B need, and how do you know before
# you rent them?
#
# Nothing of that size exists on a laptop, and nothing has to. A step is a program over
# shapes. Its layout says what every chip holds, and a compiler says what the step adds
# to that. The first half of this page needs arithmetic alone.
#
# <a href="../notebooks/10_will_it_fit.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q "upalm[plan]"

# %%
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"  # see below

import importlib.util
import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
from jax.sharding import AbstractMesh

from upalm.distributed import MeshConfig
from upalm.distributed.chips import CHIPS, GIB
from upalm.distributed.sharding import AXES
from upalm.planning import plan, target_of
from upalm.planning.lowering import train_arguments, training
from upalm.planning.search import Request, resolve_config

# %% [markdown]
# ## The settings of the paper's run
#
# A recipe has every setting of a run. `resolve_config` reads one without its text or
# weights.

# %%
config, model = resolve_config(Request("ul2r_540b", "540b", (), "v4:8x8x8", 1))
tokens = config.n_steps * config.data.batch_size * config.data.seq_len
print(f"{model.n_params / 1e9:.0f}B parameters, {tokens / 1e9:.2f}B tokens")
flops = tokens * model.train_flops_per_token(config.data.seq_len)
hours = flops / (512 * CHIPS["v4"].flops) / 3600
print(f"{flops:.2e} FLOPs: {hours:.1f} hours of 512 TPU v4 at their peak")

# %% [markdown]
# The paper reports about five days. A peak is a bound, and no estimate.
#
# ## What a chip must hold
#
# An `AbstractMesh` has sizes and no devices. The trainer's own layout, on such a mesh,
# gives the part of each array that one chip holds: float32 weights, and the two
# moments of Adafactor as PaLM uses it, without factoring. The gradients are as large
# as the weights.


# %%
def gib_per_chip(tree):
    """Memory of one chip for arrays of shapes and layouts."""
    sizes = [
        math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize
        for x in jax.tree.leaves(tree)
    ]
    return sum(sizes) / GIB


def held(config, model, n_data, n_model):
    """GiB of one chip by kind, between and within steps."""
    mesh = AbstractMesh((1, n_data, n_model), AXES)
    n_rows = config.data.batch_size
    state, _ = train_arguments(config, model, mesh, n_rows)
    weights = gib_per_chip(state.model)
    moments = gib_per_chip(state.opt_state)
    return {"weights": weights, "moments": moments, "gradients": weights}


N_MODEL = 16  # divides the 48 heads
on_chips = {n: held(config, model, n // N_MODEL, N_MODEL) for n in (64, 128, 256, 512)}
for n, kinds in on_chips.items():
    total = sum(kinds.values())
    by_hand = 16 * model.n_params / n / GIB
    print(f"{n:4} chips: {total:6.1f} GiB each; all parameters split: {by_hand:6.1f}")
    assert 1 <= total / by_hand < 1.05, "four numbers of four bytes, and a little"

# %% mystnb={"image": {"alt": "Stacked bars of weights, moments and gradients per chip for 64 to 512 chips, with lines at the memory of TPU v4 and v5p: 540B passes below v4's 32 GiB at 512 chips only, below v5p's 95 GiB from 128 on."}}
figure, axes = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
bottom = np.zeros(len(on_chips))
colours = {"weights": "#0072b2", "moments": "#56b4e9", "gradients": "#e69f00"}
places = np.arange(len(on_chips))
for kind, colour in colours.items():
    values = np.array([kinds[kind] for kinds in on_chips.values()])
    axes.bar(places, values, 0.6, bottom=bottom, color=colour, label=kind)
    bottom += values
for name in ("v4", "v5p"):
    capacity = CHIPS[name].memory / GIB
    axes.axhline(capacity, color="black", linestyle="--", linewidth=1)
    axes.text(3.45, capacity + 1.5, f"TPU {name}", ha="right")
axes.set_xticks(places, [f"{n} chips" for n in on_chips])
axes.set_ylabel("GiB per chip")
axes.legend(frameon=False)
plt.show()

# %%
memory = {name: CHIPS[name].memory / GIB for name in ("v4", "v5p")}
totals = {n: sum(kinds.values()) for n, kinds in on_chips.items()}
assert totals[256] > memory["v4"] > totals[512], "256 TPU v4 do not do"
assert totals[128] < memory["v5p"], "128 TPU v5p may"

# %% [markdown]
# Four numbers of four bytes make 16 bytes per parameter. The little above that are the
# weights of the one key-value head, which every chip of the model axis has.
#
# So 256 chips of v4 cannot hold it, whatever the compiler does. Whether 512 can
# depends on the rest: saved activations, and weights gathered for the layer at work.
#
# ## What the compiler adds
#
# `plan` compiles the step and reads memory, FLOPs and collectives off the program. Any
# compiler of JAX will do, so we begin with this machine's: a tiny model on eight fake
# devices, laid out in three ways.

# %%
WORDS = ("--start.model.n-heads", "8", "--start.model.d-head", "16")
plans = {}
for n_data, n_model in ((8, 1), (4, 2), (2, 4)):
    small, its_model = resolve_config(Request("palm_tiny", "tiny", WORDS, "here", 1))
    mesh = MeshConfig(data=n_data, model=n_model).build()
    found = plan(training(small, its_model, mesh), its_model, target_of("here"), mesh)
    plans[n_data, n_model] = found
    by_hand = held(small, its_model, n_data, n_model)
    assert abs(found.memory_gib["parameters"] / by_hand["weights"] - 1) < 1e-6
    assert abs(found.memory_gib["optimizer"] / by_hand["moments"] - 1) < 1e-6

assert found.compiled_flops_per_step is not None
ratio = found.compiled_flops_per_step / found.flops_per_step
print(f"the program's FLOPs are {ratio:.2f} of 6N + 12LHQT per token")
assert 0.8 < ratio < 1.3

# %% mystnb={"image": {"alt": "Bytes that a chip sends per step on three meshes of eight devices, by mesh axis: without a model axis all goes over data; with one, much goes over model."}}
figure, axes = plt.subplots(figsize=(7, 2.6), constrained_layout=True)
for y, found in enumerate(plans.values()):
    left = 0.0
    sent = {"data": 0.0, "model": 0.0, "both": 0.0}
    for cost in found.collectives:
        axis = cost.axes if cost.axes in sent else "both"
        sent[axis] += cost.gib * 1024
    for axis, colour in zip(sent, ("#0072b2", "#d55e00", "#999999"), strict=True):
        label = f"over {axis}" if y == 0 else None
        axes.barh(y, sent[axis], 0.6, left=left, color=colour, label=label)
        left += sent[axis]
axes.set_yticks(range(len(plans)), [f"{d} data x {m} model" for d, m in plans])
axes.set_xlabel("MiB that a device sends per step")
axes.legend(frameon=False)
axes.invert_yaxis()
plt.show()

# %%
axes_used = {key: {c.axes for c in p.collectives if c.gib} for key, p in plans.items()}
assert axes_used[8, 1] == {"data"}, "no model axis, no collective along it"
assert any("model" in axes for axes in axes_used[4, 2])

# %% [markdown]
# ## The chips' own compiler
#
# `libtpu` contains the TPU compiler and needs no TPU (Linux on x86-64, `pip install
# "upalm[plan]"`). The command below compiles the tiny model for four chips of v5e.
# Where libtpu is not installed, this page says so and goes on.

# %%
WITH_LIBTPU = importlib.util.find_spec("libtpu") is not None
target = Path(tempfile.mkdtemp()) / "plan.json"
command = "plan palm_tiny tiny --topology v5e:2x2 --json"
if WITH_LIBTPU:
    words = [sys.executable, "-m", "upalm", *command.split(), str(target)]
    subprocess.run(words, check=True, capture_output=True)
    found = json.loads(target.read_text())
    for kind, gib in found["memory_gib"].items():
        print(f"{kind:12} {gib:8.4f} GiB per chip of {found['capacity_gib']:.0f}")
    print(f"{found['step_seconds']:.5f} s per step or more, by {found['bound_by']}")
    tried, its_model = resolve_config(Request("palm_tiny", "tiny", (), "here", 1))
    by_hand = held(tried, its_model, 4, 1)
    assert abs(found["memory_gib"]["parameters"] / by_hand["weights"] - 1) < 1e-3
    assert found["fits"]
else:
    print("libtpu is not installed: `upalm", command, "plan.json` needs it")

# %% [markdown]
# `upalm plan ul2r_540b 540b --topology v4:8x8x8` answers the question at the top: 25.3
# of 32 GiB per chip, so 512 do. It takes a minute or two, and the page
# [Plans](../plans.md) has its table for all the paper's runs.
#
# ## Now change this
#
# - Set `N_MODEL = 8`. The totals stay; what does the batch of 32 rows say to 512 chips?
# - Which slice of v5p does 540B need if you halve the moments (`AdamW` and `Adafactor`
#   have two; what would `optax.sgd` hold)?
# - Add `--find-mesh` to the command: it tries every mesh and ranks those that fit.
#
# <details><summary>Answers</summary>
#
# - That they do not divide: 64 groups of chips along `data` would share 32 rows. With
#   16 chips along `model` there are 32 groups.
# - 128 chips. With 12 bytes per parameter 64 chips need 97 GiB each, and v5p has 95.
#   `optax.sgd` without momentum holds no moments: 8 bytes, and 65 GiB at 64 chips.
# - [Plans](../plans.md) has such tables.
#
# </details>
