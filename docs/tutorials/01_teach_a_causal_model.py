# %% [markdown]
# # Teach a causal model to fill gaps
#
# **Question:** what does a little UL2R do to a finished causal model, that the same
# amount of ordinary training does not?
#
# The package ships a PaLM of 2.4M parameters that was trained on Python source, left to
# right. We continue it twice from the same weights, with the same
# number of tokens: once with UL2R, once with more of the same. The second run is the
# *control*. Without it, "UL2R helped" could mean "more training helped".
#
# Every word that is new here has an entry in the [glossary](../glossary.md).
#
# <a href="../notebooks/01_teach_a_causal_model.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
import random
import tempfile
import warnings
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
# for continuations, in U-PaLM's shares.
#
# U-PaLM's own mixture is called `ul2r`. `ul2r_eos` adds one thing: inputs with gaps end
# with EOS, and so do prompts (`inputs_eos` above says whether a model learnt that). In
# runs as short as this one the model needs that mark to begin its answer
# ([why](../results.md#why-the-inputs-end-with-eos-here)). For a model to use take
# `ul2r_infill`, or `ul2r_gaps` if answers shall end by themselves
# ([which to take](../ul2r_in_one_page.md#2-the-mixture)).
#
# `joint_budget=True` lets the inputs and targets of a row share its 128 positions; in
# the paper each has half. `decay=False` switches weight decay off, as it was for the
# base.

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
# How many bits does the missing line cost, per byte, if both sides are seen? An answer
# has three pieces: the sentinel, which says where it goes, the line, and an end. The
# sentinel and the end are form, so we count them apart. And what does the same line
# cost as ordinary text, left to right?
#
# `mode="nlg"` puts the token in front of the prompt that long spans had in training: a
# line has about a dozen tokens, which is nearer to those (32) than to short ones (3).

# %%
n_bytes = np.array([len(line.encode()) for _, line in gaps])


def gap_bits(model):
    """Bits of the sentinel, the line and the end of each answer, [gap, 3]."""
    scores = model.score_batch([(parts, [line]) for parts, line in gaps], mode="nlg")
    pieces = [np.split(score.log_probs, [1, -1]) for score in scores]
    return -np.array([[p.sum() for p in piece] for piece in pieces]) / np.log(2)


def text_bits(model):
    """Bits of the same line as a continuation of the text before it."""
    scores = model.score_batch(
        [(before, line) for (before, _), line in gaps], attention="causal"
    )
    return np.array([-score.log_prob / np.log(2) for score in scores])


in_gaps = {name: gap_bits(model) for name, model in models.items()}
as_text = {name: text_bits(model) for name, model in models.items()}
per_byte = {name: bits.sum(0) / n_bytes.sum() for name, bits in in_gaps.items()}
left_to_right = {name: bits.sum() / n_bytes.sum() for name, bits in as_text.items()}
print("bits per byte  line in its gap  sentinel    end   line, left to right")
for name, (sentinel, line_bits, end) in per_byte.items():
    row = f"{line_bits:15.3f} {sentinel:9.3f} {end:6.3f} {left_to_right[name]:21.3f}"
    print(f"{name:14} {row}")

# %% [markdown]
# Most of what UL2R taught is the form: the sentinel and the end cost the control many
# times what they cost after UL2R. The line itself is the harder test. It gets cheaper,
# too, but by less.
#
# It is still dearer in a gap than left to right, where the model sees less. A model
# that used both sides as a person does would have these the other way round. For whole
# lines none that we trained at this size does ([measured results](../results.md)).
#
# Some lines are harder than others. But every model met the *same* lines, so the
# question is the difference line by line.


# %%
def paired(bits, n_draws=2000):
    """Bits per byte, from differences of bits per gap: mean and 95% interval."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(bits), size=(n_draws, len(bits)))
    draws = bits[picks].sum(1) / n_bytes[picks].sum(1)
    return bits.sum() / n_bytes.sum(), *np.quantile(draws, (0.025, 0.975))


gained = in_gaps["ul2r"] - in_gaps["control"]
effects = {
    "ul2r: the line in its gap": paired(gained[:, 1]),
    "ul2r: sentinel and end": paired(gained[:, [0, 2]].sum(1)),
    "base: the line in its gap": paired((in_gaps["base"] - in_gaps["control"])[:, 1]),
    "ul2r: the line, left to right": paired(as_text["ul2r"] - as_text["control"]),
}

# %% mystnb={"image": {"alt": "Paired differences to the control in bits per byte, with 95% intervals: for UL2R the line in its gap is below zero and the sentinel with the end further below; the base's line and UL2R's line left to right are near zero."}}
figure, axes = plt.subplots(figsize=(7, 2.6), constrained_layout=True)
colours = ("#d55e00", "#e69f00", "#777777", "#0072b2")
for y, (effect, colour) in enumerate(zip(effects.values(), colours, strict=True)):
    mean, low, high = effect
    axes.plot([low, high], [y, y], color=colour, linewidth=6, solid_capstyle="butt")
    axes.plot(mean, y, "o", color="white", markeredgecolor=colour, markersize=4)
axes.axvline(0, color="black", linewidth=1)
axes.set_yticks(range(len(effects)), list(effects))
axes.set_xlabel("bits per byte, minus the control (left of 0: better than it)")
axes.set_ylim(len(effects) - 0.5, -0.5)
plt.show()

# %%
for name, (mean, low, high) in effects.items():
    print(f"{name:29} {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
line_effect, form_effect, _, text_effect = effects.values()
assert line_effect[2] < -0.2, "UL2R fills gaps better than causal training does"
assert form_effect[0] < 2 * line_effect[0], "most of it is the form"
assert abs(text_effect[0]) < 0.1, "and forgets little"
assert per_byte["ul2r"][1] > left_to_right["ul2r"], "a gap costs more than the left"

# %% [markdown]
# Both forks lose a little left to right, since they start again at a peak rate that is
# above the base's last one. This is why UL2R is compared with the control and not with
# the base.

# %% [markdown]
# ## Before and after
#
# A model of this size fills no gap as a person would. Look for words that stand *after*
# the gap.

# %%
texts = (
    "class Stack:\n    def push(self, <extra_id_0>):\n"
    "        self.items.append(item)\n",
    "def first(items):\n    if not <extra_id_0>:\n        return None\n"
    "    return items[0]\n",
)
settings = upalm.GenerationConfig(max_new_tokens=12, stop=("\n",))
warnings.filterwarnings("ignore", "this model was never trained on gaps")
for text in texts:
    fills = {name: m.infill(text, settings).spans[0] for name, m in models.items()}
    print(text)
    for name, fill in fills.items():
        print(f"    {name:8} {fill!r}")

# %% [markdown]
# Two fills prove nothing; the figures above compare the models on a hundred gaps.
#
# ## Now change this
#
# - Give both forks 600 steps. Does the difference grow, or was it the first steps?
# - Use the mixture `"ul2r"`, which has no EOS after its inputs. Why do the gaps
#   suffer?
# - Replace `"stdlib"` in `sources.load` by a folder of your own `.txt` files, a hundred
#   or more of 50 lines.
#
# <details><summary>Answers</summary>
#
# - Compare the rows of the table: the form is learnt in the first steps, and what comes
#   after is the line.
# - The sentinel costs far more: without EOS the model does not notice where the prompt
#   ends. The line itself hardly changes.
# - The base read Python alone, so its costs on other text say little. Look at the
#   difference of the forks.
#
# </details>
