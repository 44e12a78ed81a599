# %% [markdown]
# # The same run on a mesh and on two processes
#
# **Question:** if a run moves from one device to eight, and then to two machines, are
# its numbers still the same?
#
# They should be: the mesh says where the work is done, and nothing else. One machine
# is enough to see it. XLA can split a CPU into *fake devices*, which hold parts of the
# arrays and exchange them as real ones do, only slower. So a layout can be tried
# before a pod is paid for.
#
# <a href="../notebooks/09_on_a_mesh.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %% [markdown]
# The number of fake devices is read when JAX starts, so it is set before that.

# %%
import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import json
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import upalm
from upalm.checkpoints import load_model
from upalm.data import sources
from upalm.distributed import make_mesh
from upalm.model.palm import shard

FOLDER = Path(tempfile.mkdtemp())
print(len(jax.devices()), "devices")

# %% [markdown]
# ## Where a weight lies
#
# The mesh has an axis `data`, over which rows and parameters are split, and an axis
# `model`, over which heads and the feed-forward layer are. We lay the shipped model
# out in three ways and ask JAX which device holds which part of one matrix: the first
# feed-forward weight of a layer, width x hidden units.

# %%
model, _, _ = load_model(upalm.PALM_TINY)
MESHES = {
    "8 data x 1 model": (8, 1),
    "4 data x 2 model": (4, 2),
    "1 data x 8 model": (1, 8),
}


def owners(weight):
    """Number of the device that holds each entry of layer 0 of a stacked weight."""
    owner = np.full(weight.shape[1:], -1)
    for part in weight.addressable_shards:
        owner[part.index[1:]] = part.device.id
    return owner


# %% mystnb={"image": {"alt": "Three squares, one per mesh, coloured by the device that holds each part of a matrix: eight bands of rows, four bands cut in two, and eight bands of columns."}}
figure, axes = plt.subplots(1, 3, figsize=(9, 3.2), constrained_layout=True)
for axis, (title, mesh) in zip(axes, MESHES.items(), strict=True):
    weight = shard(model, make_mesh(*mesh)).blocks.w_gate
    owner = owners(weight)
    axis.imshow(owner, cmap="tab10", vmin=0, vmax=9, aspect="auto")
    for device in range(8):
        y, x = np.argwhere(owner == device).mean(0)
        axis.text(x, y, device, color="white", ha="center", va="center", weight="bold")
    axis.set(title=title, xlabel="hidden units", ylabel="width")
    assert len(np.unique(owner)) == 8, "every device holds a part, and its own"
    part = weight.addressable_shards[0].data
    assert part.size * 8 == weight.size, "and none holds more than an eighth"
plt.show()

# %% [markdown]
# No layer, loss or sampler mentions a mesh axis. Two tables in
# `upalm.distributed.sharding` map the names of dimensions to the axes, and XLA inserts
# the collectives that follow.
#
# ## The same run, laid out differently
#
# These are the commands that you would type, with the settings of the recipe
# `ul2r_tiny` and fewer steps. With several processes, each is told where the first one
# listens, how many there are, and its own number. Clusters under Slurm, GKE or Cloud
# TPU need none of the three.

# %%
texts = FOLDER / "texts"
texts.mkdir()
corpus = sources.load("stdlib")
for i, document in enumerate((*corpus.train[:60], *corpus.validation[:10])):
    (texts / f"{i}.txt").write_text(document.text)

COMMAND = [sys.executable, "-m", "upalm", "run", "ul2r_tiny", "ul2r"]
SETTINGS = ["--n-steps", "12", "--data.seq-len", "128", "--log-every", "1"]
SETTINGS += ["--eval-every", "12", "--eval-batches", "1", "--data.source", str(texts)]


def start(name, *words, n_devices=8, n_processes=1):
    """The processes of a run, as if each was typed into a terminal of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flag = f"--xla_force_host_platform_device_count={n_devices // n_processes}"
    running = []
    for number in range(n_processes):
        command = [*COMMAND, "--out", str(FOLDER / name), *SETTINGS, *words]
        if n_processes > 1:
            command += ["--processes.coordinator", address]
            command += ["--processes.n-processes", str(n_processes)]
            command += ["--processes.process-id", str(number)]
        running.append(
            subprocess.Popen(
                command,
                env=os.environ | {"XLA_FLAGS": flag},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    return running


def finish(running):
    """Wait for all processes; what they said, if one failed."""
    said = [process.communicate()[1] for process in running]
    assert all(process.returncode == 0 for process in running), said[0][-2000:]


def losses(name):
    """Training loss by step."""
    path = FOLDER / name / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


finish(
    start("one device", n_devices=1) + start("4 data x 2 model", "--mesh.model", "2")
)

# %% [markdown]
# ## Two processes, one of which is told to stop
#
# Now two processes with four devices each. After step 4 the second one gets SIGTERM,
# which is what a machine gets that is about to be taken away. Both save after the same
# step and end. Then *one* process resumes the run, on another mesh.

# %%
pair = start("moved", "--mesh.model", "2", n_processes=2)
while 4 not in losses("moved") and all(p.poll() is None for p in pair):
    time.sleep(0.05)
pair[1].send_signal(signal.SIGTERM)
said = [process.communicate()[1] for process in pair]
stopped_at = max(losses("moved"))
print(f"both ended after step {stopped_at}, with codes {[p.returncode for p in pair]}")
finish(start("moved", "--mesh.model", "1"))

# %% [markdown]
# ## Compare
#
# `metrics.jsonl` keeps six digits of each loss. The weights tell more: how far is each
# matrix from that of the run on one device, beside how far training moved it? Both are
# root mean squares over the entries of the matrix.

# %%
RUNS = {"one device": "black", "4 data x 2 model": "#e69f00", "moved": "#009e73"}
curves = {name: losses(name) for name in RUNS}
steps = list(curves["one device"])
weights = {name: load_model(FOLDER / name).model for name in RUNS}


def distances(a, b):
    """Root mean square difference of the entries, by the name of the parameter."""
    pairs = zip(jax.tree_util.tree_leaves_with_path(a), jax.tree.leaves(b), strict=True)
    return {
        path[-1].name: float(np.sqrt(np.mean(np.square(x - y))))
        for (path, x), y in pairs
    }


moved_by = distances(weights["one device"], model)
apart = {n: distances(weights[n], weights["one device"]) for n in list(RUNS)[1:]}
shares = {
    n: [by_matrix[m] / moved_by[m] for m in moved_by] for n, by_matrix in apart.items()
}
for name, share in shares.items():
    print(
        f"{name:17} {np.median(share):.0e} of what training moved a matrix by,"
        f" at most {max(share):.0e}"
    )

# %% mystnb={"image": {"alt": "Left, the losses of three runs over 12 steps as lines that lie on each other. Right, per weight matrix, the distance from the run on one device: thousands of times smaller than what training moved it by."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
for width, name in zip((8, 4, 1), reversed(RUNS), strict=True):
    values = [curves[name][step] for step in steps]
    axes[0].plot(steps, values, color=RUNS[name], linewidth=width, label=name)
axes[0].axvline(stopped_at, color="#d55e00", linestyle="--", label="SIGTERM")
axes[0].set(xlabel="step", ylabel="loss in nats per token")
axes[0].legend(frameon=False)
rows = range(len(moved_by))
axes[1].plot(list(moved_by.values()), rows, "s", color="#777777", label="training")
for name, by_matrix in apart.items():
    axes[1].plot(list(by_matrix.values()), rows, "o", color=RUNS[name], label=name)
axes[1].set_yticks(rows, list(moved_by))
axes[1].set(xscale="log", xlabel="root mean square change of the entries")
axes[1].legend(frameon=False, loc="center")
axes[1].invert_yaxis()
plt.show()

# %%
assert 4 <= stopped_at < 12, "the run stopped in the middle"
for name in RUNS:
    assert list(curves[name]) == steps, "no step is missing and none was taken twice"
    difference = [abs(curves[name][k] - curves["one device"][k]) for k in steps]
    assert max(difference) < 1e-3, "the losses are those of one device"
for share in shares.values():
    assert np.median(share) < 1e-4, "and so are the weights"
    assert max(share) < 1e-2, "even of a matrix with an entry that went the other way"

# %% [markdown]
# The differences are those of rounding: eight devices add the same numbers in another
# order. Most matrices are a hundred-thousandth of their way apart. A single entry may
# be further off: Adafactor divides a gradient by its own size, so an entry whose
# gradient is as small as rounding may take its first step the other way. Which entry
# that is, if any, depends on the instructions of the processor. The README's "within
# 2e-6" is about all parameters after 8 steps of a smaller model
# (`tests/distributed/test_processes.py`). The batches are equal to the bit, since row
# `r` of step `s` depends on the seed, `s` and `r` alone, and each process makes just
# the rows of its own devices.
#
# On real machines only the environment changes. `XLA_FLAGS` goes away, and the devices
# are those that JAX finds. [Training](../training.md) has the failures that were
# tried, and [plans](../plans.md) the meshes of the paper's sizes.
#
# ## Now change this
#
# - Set `--data.batch-size 6`. Read the refusal: what does the mesh have to divide?
# - Kill a process of the pair with SIGKILL instead. What does the other one say, and
#   after how long? (`--processes.heartbeat-seconds` decides.)
# - Add `--accumulation 2` to one of the runs. Is the update still the same?
#
# <details><summary>Answers</summary>
#
# - "a batch of 6 rows in 1 microbatches has 6 rows each, no multiple of the 4 shards of
#   replica x data." The data axis divides the rows and the width, the model axis
#   divides the hidden units, and the heads or the width of each.
# - It ends with an error after at most `--processes.heartbeat-seconds`, which is 100
#   unless set. The same command resumes.
# - Up to rounding: the gradients of the two halves of a batch are added before the
#   update.
#
# </details>
