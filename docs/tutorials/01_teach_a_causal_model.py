# %% [markdown]
# # Teach a causal model to fill gaps in five minutes
#
# **Question:** what does a little UL2R do to a finished causal model, that the same
# amount of ordinary training does not?
#
# The package ships a PaLM of 1.25M parameters that was trained on Python's standard
# library, left to right. We continue it twice from the same weights, with the same
# number of tokens: once with UL2R, once with more of the same. The second run is the
# *control*. Without it, "UL2R helped" could mean "more training helped".
#
# <a href="../notebooks/01_teach_a_causal_model.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
import random
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

import upalm
from upalm.data import DataConfig, encode, sources
from upalm.training import Adafactor, Continue, Schedule, TrainConfig, fit

base = upalm.load(upalm.PALM_TINY)
print(base.info)

# %% [markdown]
# ## Gaps in text that nobody trained on
#
# One line of code is missing; the lines around it are there. `<extra_id_0>` marks the
# place. It is a token of the vocabulary, called a *sentinel*, which the base has never
# seen in use.

# %%
corpus = sources.load("stdlib")
rng = random.Random(0)


def cut_gap(text):
    """(before, after) and the missing line between them."""
    lines = text.splitlines(keepends=True)
    usable = [i for i in range(4, len(lines) - 4) if 8 < len(lines[i].strip()) < 60]
    i = rng.choice(usable)
    before, after = "".join(lines[max(i - 5, 0) : i]), "".join(lines[i + 1 : i + 4])
    return (before[-250:], "\n" + after[:150]), lines[i].rstrip("\n")


long_enough = [d.text for d in corpus.validation if d.text.count("\n") > 40]
gaps = [cut_gap(text) for text in long_enough for _ in range(2)][:120]
(before, after), line = gaps[3]
print(f"{before}<extra_id_0>{after}\n--- the gap was: {line.strip()}")

# %% [markdown]
# ## Two runs, one difference
#
# `fit` is the training loop: it takes settings, a model, a tokenizer and text, and
# writes a checkpoint. The forks differ in `mixture`, which says what the rows ask of
# the model. `causal` asks for every next token. `ul2r_eos` asks for masked spans and
# for continuations, in U-PaLM's shares, and ends what the model is given with EOS.

# %%
train = encode(base.tokenizer, corpus.train[:400])
held_out = encode(base.tokenizer, corpus.validation[:40])
N_STEPS = 150


def continued(name, mixture):
    """The base after 150 steps of 8 rows of 128 tokens."""
    folder = Path(tempfile.mkdtemp()) / name
    config = TrainConfig(
        out=folder,
        start=Continue(upalm.PALM_TINY),
        data=DataConfig(mixture=mixture, seq_len=128, batch_size=8, joint_budget=True),
        optimizer=Adafactor(Schedule("cosine", 1e-2, 1e-4), decay=False),
        n_steps=N_STEPS,
    )
    fit(config, base.model, base.tokenizer, train, held_out, title=name)
    return upalm.load(folder)


models = {
    "base": base,
    "control": continued("control", "causal"),
    "ul2r": continued("ul2r", "ul2r_eos"),
}
share = N_STEPS * 8 * 128 / sum(stage.n_tokens for stage in base.info.stages or ())
print(f"each fork took {share:.1%} of the base's training")
assert share < 0.02

# %% [markdown]
# ## Measure on the same gaps
#
# How many bits does the missing line cost, per byte, if both sides are seen? And does
# it cost anything on ordinary text, left to right? `mode="nlg"` puts the token in front
# of the prompt that long gaps had in training.

# %%
n_bytes = np.array([len(line.encode()) for _, line in gaps])


def gap_bits(model):
    """Bits of each missing line, with its sentinel and the end of the answer."""
    scores = model.score_batch([(parts, [line]) for parts, line in gaps], mode="nlg")
    return np.array([-score.log_prob / np.log(2) for score in scores])


def text_bits(model):
    """Bits of the same line as a continuation of the text before it."""
    scores = model.score_batch(
        [(before, line) for (before, _), line in gaps], attention="causal"
    )
    return np.array([-score.log_prob / np.log(2) for score in scores])


in_gaps = {name: gap_bits(model) for name, model in models.items()}
as_text = {name: text_bits(model) for name, model in models.items()}
for name in models:
    gap, text = (bits[name].sum() / n_bytes.sum() for bits in (in_gaps, as_text))
    print(f"{name:8} gap {gap:.3f}, left to right {text:.3f} bits per byte")

# %% [markdown]
# The bars of three models overlap, since some lines are harder than others. But every
# model met the *same* lines, so the question is the difference line by line.


# %%
def paired(bits, name, n_draws=2000):
    """Bits per byte of a model minus the control's: mean and 95% interval."""
    delta = bits[name] - bits["control"]
    picks = np.random.default_rng(0).integers(len(delta), size=(n_draws, len(delta)))
    draws = delta[picks].sum(1) / n_bytes[picks].sum(1)
    return delta.sum() / n_bytes.sum(), *np.quantile(draws, (0.025, 0.975))


effects = {
    "ul2r, gaps": paired(in_gaps, "ul2r"),
    "base, gaps": paired(in_gaps, "base"),
    "ul2r, left to right": paired(as_text, "ul2r"),
}

# %% mystnb={"image": {"alt": "Paired differences to the control in bits per byte: UL2R is far below zero in gaps, the base is near zero or above, and UL2R is near zero on ordinary text."}}
figure, axes = plt.subplots(figsize=(7, 2.4), constrained_layout=True)
for y, (low_to_high, colour) in enumerate(
    zip(effects.values(), ("#d55e00", "#777777", "#0072b2"), strict=True)
):
    mean, low, high = low_to_high
    axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="round")
    axes.plot(mean, y, "o", color=colour, markersize=8)
axes.axvline(0, color="black", linewidth=1)
axes.set_yticks(range(len(effects)), list(effects))
axes.set_xlabel("bits per byte, minus the control (left of 0: better than it)")
axes.invert_yaxis()
plt.show()

# %%
mean, low, high = effects["ul2r, gaps"]
print(f"UL2R minus control in gaps: {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
assert high < 0, "UL2R fills gaps better than the same compute of causal training"
assert abs(effects["ul2r, left to right"][0]) < 0.2, "and forgets little"

# %% [markdown]
# ## Before and after
#
# A model of this size fills no line as a person would. Look at the form: what the
# base writes does not heed the lines after the gap.

# %%
text = "def add(a, b):\n    <extra_id_0>\n    return c\n"
settings = upalm.GenerationConfig(max_new_tokens=12, stop=("\n",))
for name, model in models.items():
    print(f"{name:8}", model.infill(text, settings).spans)

# %% [markdown]
# ## Now change this
#
# - Give both forks 600 steps. Does the difference grow, or was it the first steps?
# - Use the mixture `"ul2r"`, which has no EOS after its inputs. Why do the gaps
#   suffer?
# - Replace `"stdlib"` by a folder of your own text, here and in `cut_gap`.
