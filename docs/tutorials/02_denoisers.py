# %% [markdown]
# # What the denoisers do
#
# **Question:** what does UL2R ask of a model, and how much of each kind?
#
# UL2R trains a causal language model on three tasks, which U-PaLM calls denoisers
# (U-PaLM section 2.3). Each cuts a chunk of tokens into *inputs*, which the model
# sees in both directions, and *targets*, which it predicts from left to right. All of
# it is NumPy: no model is trained on this page.
#
# <a href="../notebooks/02_denoisers.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
from math import comb

import matplotlib.pyplot as plt
import numpy as np

from upalm import ul2r
from upalm.checkpoints import PALM_TINY
from upalm.data import DataConfig, Loader, Tokens, load_tokenizer
from upalm.data.loader import statistics

# %% [markdown]
# ## Integers first
#
# Ten tokens, and three ids that mark gaps (the *sentinels* 99, 98 and 97).

# %%
symbols = ul2r.Symbols(
    sentinels=(99, 98, 97), modes={"nlu": (50,), "nlg": (51,), "s2s": (52,)}
)
tokens = np.arange(10, 20)
short_spans = ul2r.SpanCorruption(
    name="r", mode="nlu", mean_span=2.0, corruption_rate=0.4
)
example = short_spans(tokens, np.random.default_rng(0), symbols)
print("inputs ", example.inputs)
print("targets", example.targets)

# %% [markdown]
# Each masked span left one sentinel in the inputs. The targets repeat that sentinel
# and then spell the span. Nothing is lost: the targets fit back into the inputs.

# %%
restored = ul2r.restore(example, symbols.sentinels)
assert np.array_equal(restored, tokens)

# %% [markdown]
# ## One piece of code in colour
#
# The tokenizer that comes with the package was trained on Python source. The next cell
# only draws.

# %%
tokenizer = load_tokenizer(PALM_TINY)
TEXT = """\
def mean(values):
    total = sum(values)
    return total / len(values)

def variance(values):
    middle = mean(values)
    squares = [(value - middle) ** 2 for value in values]
    return mean(squares)

class Window:
    def __init__(self, size):
        self.size = size
        self.items = []

    def add(self, item):
        self.items.append(item)
        if len(self.items) > self.size:
            del self.items[0]
"""
ids = np.array(tokenizer.encode(TEXT), np.int32)

# %% tags=["hide-input"]
SPAN_COLOURS = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]


def draw(axes, ids, title, is_target, top, width=58):
    """Tokens in lines of a fixed width; a sentinel and its span share a colour."""
    axes.text(0, -top, title, fontsize=10, weight="bold")
    x, line, number = 0, top + 1, -1
    for i in ids:
        number += tokenizer.is_sentinel(i)
        masked = tokenizer.is_sentinel(i) or (is_target and number >= 0)
        word = tokenizer.decode([i]).replace("\n", "\u21b5").replace(" ", "\u00b7")
        if x + len(word) > width:
            x, line = 0, line + 1
        colour = SPAN_COLOURS[number % 6] if masked else "#eeeeee"
        box = {"facecolor": colour, "edgecolor": "none", "pad": 1.5}
        ink = "white" if masked else "black"
        axes.text(x, -line, word, family="monospace", fontsize=9, color=ink, bbox=box)
        x += len(word) + 0.7
    return line + 1.6


# %% mystnb={"image": {"alt": "One piece of code as inputs and targets of the R, X and S denoisers; masked spans have colours, kept tokens are grey. R and X have text between their gaps, and end in one."}}
names = {"r": "R: short spans", "x": "X: long spans, half the text", "s": "S: a prefix"}
mixture = ul2r.UL2R
figure, axes = plt.subplots(figsize=(5, 3 * len(mixture)), constrained_layout=True)
top, examples = 0, {}
for denoiser in mixture:
    example = denoiser(ids, np.random.default_rng(3), tokenizer.symbols)
    examples[denoiser.name] = example
    for part, tokens_of_part in zip(("inputs", "targets"), example, strict=True):
        title = f"{names.get(denoiser.name, denoiser.name)} - {part}"
        top = draw(axes, tokens_of_part, title, part == "targets", top)
axes.set(xlim=(0, 58), ylim=(1 - top, 1))
axes.axis("off")
plt.show()

# %%
n_gaps = {
    name: int(sum(map(tokenizer.is_sentinel, example.inputs)))
    for name, example in examples.items()
}
print("gaps:", n_gaps)
for name, example in examples.items():
    assert tokenizer.is_sentinel(example.inputs[-1]) == (name != "s"), "noise is last"
    assert (n_gaps[name] > 0) == (name != "s")

# %% [markdown]
# R leaves enough around each gap to guess it. X takes so much that the model must
# compose. S has no sentinel at all: it is language modelling with a prefix that is
# seen in both directions.
#
# In R and X the inputs end in a sentinel: T5's code, which UL2 follows, always masks
# the last token. So the last gap has no text after it, in any example of the paper's
# mixture, `ul2r`, and a model trained on it gives poor answers to prompts that go on
# after their last gap. Three mixtures of this package mend that. `ul2r_eos` ends such
# inputs with EOS, the smallest change that works in a few hundred steps; other
# tutorials use it, since their runs are that short. `ul2r_infill` also rolls the
# masks, so that gaps lie anywhere ([what was
# measured](../results.md#why-the-inputs-end-with-eos-here)). `ul2r_gaps` has missing
# lines and single gaps as well, in chunks of any length, so that answers end by
# themselves; the quickstart uses it.
#
# ## How long are the spans?
#
# "Mean 3" leaves the law open. T5's code fixes how many tokens and how many spans are
# masked, and then draws the lengths uniformly among all ways to cut *m* tokens into *k*
# positive parts. So one span has length *n* with
# probability C(m - n - 1, k - 2) / C(m - 1, k - 1).

# %%
LENGTH = 512
r = ul2r.R
n_masked, n_spans = ul2r.span_counts(LENGTH, r.mean_span, r.corruption_rate)
print(f"{n_masked} of {LENGTH} tokens are masked, in {n_spans} spans")
rng, lengths = np.random.default_rng(0), []
for _ in range(400):
    mask = ul2r.span_noise_mask(LENGTH, r.mean_span, r.corruption_rate, rng)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask, [0]])))
    lengths += list(edges[1::2] - edges[::2])
longest = 15
counts = np.bincount(np.minimum(lengths, longest + 1), minlength=longest + 2)
seen = counts[1 : longest + 1] / len(lengths)
law = [
    comb(n_masked - n - 1, n_spans - 2) / comb(n_masked - 1, n_spans - 1)
    for n in range(1, longest + 1)
]

# %% mystnb={"image": {"alt": "Histogram of span lengths of the R denoiser with T5's law as a line through the tops of the bars; both fall geometrically from length 1."}}
figure, axes = plt.subplots(figsize=(7, 3.2), constrained_layout=True)
axes.bar(range(1, longest + 1), seen, color="#56b4e9", label="drawn, 400 chunks")
axes.plot(range(1, longest + 1), law, "o-", color="#d55e00", label="T5's law")
axes.axvline(float(np.mean(lengths)), color="black", linestyle=":", label="mean")
axes.set(xlabel="length of a span in tokens", ylabel="share of spans", ylim=(0, None))
axes.legend(frameon=False)
plt.show()

# %%
assert abs(np.mean(lengths) - n_masked / n_spans) < 1e-9, "the mean is exact"
assert np.max(np.abs(seen - law)) < 0.01, "the lengths follow T5's law"
assert len(lengths) == 400 * n_spans, "the number of spans is not random"

# %% [markdown]
# The most frequent span is a single token, whatever the mean.
#
# ## How much of each?
#
# U-PaLM draws 25% R, 25% X and 50% S. These are shares of *examples*. The shares of
# the targets, which the loss counts, are others: an X example has far more targets
# than an R example. The loader counts both over 300 packed rows.

# %%
corpus = Tokens.from_documents(rng.integers(100, 900, (200, 3000)).tolist())
symbols = ul2r.Symbols(tuple(range(1100, 1000, -1)), symbols.modes)
config = DataConfig(mixture="ul2r", seq_len=2048, batch_size=8)
counts = statistics(Loader(corpus, config, symbols, seed=0), 300).denoisers
n_examples = sum(count.examples for count in counts)
n_targets = sum(count.loss_tokens for count in counts)
weights = {count.name: count.examples / n_examples for count in counts}
shares = {count.name: count.loss_tokens / n_targets for count in counts}
print("examples", {name: f"{share:.0%}" for name, share in weights.items()})
print("targets ", {name: f"{share:.0%}" for name, share in shares.items()})

# %% mystnb={"image": {"alt": "Two stacked bars: R, X and S have 25, 25 and 50 percent of the examples, but R has far fewer of the targets."}}
figure, axes = plt.subplots(figsize=(7, 1.8), constrained_layout=True)
for y, values in enumerate((weights, shares)):
    left = 0.0
    for name, colour in zip("rxs", ("#0072b2", "#d55e00", "#999999"), strict=True):
        axes.barh(y, values[name], left=left, color=colour)
        text = f"{name.upper()} {values[name]:.0%}"
        middle = left + values[name] / 2
        axes.text(middle, y, text, ha="center", va="center", color="white")
        left += values[name]
axes.set(xlim=(0, 1), xticks=[], frame_on=False)
axes.set_yticks([0, 1], ["examples", "targets"])
axes.invert_yaxis()
plt.show()

# %%
assert abs(weights["s"] - 0.5) < 0.05, "examples are drawn by U-PaLM's weights"
assert 2 * shares["r"] < shares["x"], "equal examples of R and X, unequal targets"

# %% [markdown]
# ## Your own text
#
# Any text of yours becomes examples in the same way. On the command line, `upalm data
# show --data my.txt --mixture ul2r` prints whole rows in colour, for a file of 10 KB or
# more.

# %%
mine = "UL2R takes a model that only ever looked back, and lets it look both ways."
inputs, targets = ul2r.R(
    np.array(tokenizer.encode(mine), np.int32),
    np.random.default_rng(0),
    tokenizer.symbols,
)
print(tokenizer.decode(inputs))
print(tokenizer.decode(targets))

# %% [markdown]
# ## Now change this
#
# - Give `short_spans` a `corruption_rate` of 0.9. Why are there never more spans than
#   kept tokens?
# - Set `mixture = ul2r.UL2` above the picture: seven denoisers, of which four are
#   extreme.
# - Draw the lengths of `ul2r.X` with `LENGTH = 2048`. How many spans are there, and
#   how far is the law from geometric?
#
# <details><summary>Answers</summary>
#
# - Nine tokens are masked, in one span. Two spans would be one if no kept token stood
#   between them, so each span needs a kept token before it, and one token is kept.
# - R and X become six: spans of 3 and 8 tokens at 15% and at 50%, and spans of 64 at
#   both. A text as short as this one has room for a single span of 64.
# - 1024 tokens are masked, in 32 spans. Up to 100 tokens the law is within 6% of the
#   geometric one that starts at the same 0.030. Longer spans are rarer, since their
#   sum is fixed.
#
# </details>
