# %% [markdown]
# # A denoiser of your own
#
# **Question:** if an editor only ever asks for one gap in the middle, does training
# on just that help, and what does it cost elsewhere?
#
# UL2R's R and X scatter several gaps over a chunk. A code editor asks for a single
# one, where the cursor is. We write a denoiser for that, test its properties,
# continue the base model with it, and compare with U-PaLM's mixture on every kind of
# gap.
#
# <a href="../notebooks/05_a_denoiser_of_your_own.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from upalm import ul2r
from upalm.checkpoints import PALM_TINY, load_model
from upalm.data import DataConfig, Loader, encode, sources
from upalm.training import Adafactor, Continue, Schedule, TrainConfig, fit, loss_fn

model, tokenizer, _ = load_model(PALM_TINY)

# %% [markdown]
# ## Ten lines
#
# A denoiser says how long its inputs and targets can be and how many sentinels it
# takes, and makes the example. The number of tokens in all must not depend on the
# noise: rows are planned before any is drawn.


# %%
@dataclass(frozen=True, kw_only=True)
class Middle(ul2r.Denoiser):
    """Mask one gap: a fifth of the chunk, at a random place inside it."""

    share: float = 0.2

    def n_masked(self, length):
        return max(round(length * self.share), 1)

    def n_sentinels(self, length):
        return 1 if length >= 3 else 0

    def lengths(self, length):
        if length < 3:
            return length, 0
        return length - self.n_masked(length) + 1, self.n_masked(length) + 1

    def __call__(self, tokens, rng, symbols):
        mask = np.zeros(len(tokens), bool)
        if len(tokens) >= 3:
            n = self.n_masked(len(tokens))
            first = rng.integers(1, len(tokens) - n)  # a token stays on either side
            mask[first : first + n] = True
        return ul2r.corrupt(tokens, mask, symbols.sentinels)


middle = Middle(name="middle", mode="nlg", inputs_eos=True)
mine = (middle, replace(ul2r.S, weight=1.0))

# %% [markdown]
# ## Its properties, before any training

# %%
rng = np.random.default_rng(0)
for length in range(1, 300):
    chunk = rng.integers(10, 900, length)
    example = middle(chunk, rng, tokenizer.symbols)
    restored = ul2r.restore(example, tokenizer.symbols.sentinels)
    assert np.array_equal(restored, chunk), "nothing is lost"
    assert (len(example.inputs), len(example.targets)) == middle.lengths(length)

# %% [markdown]
# ## Continue the base with it
#
# Both runs start from the checkpoint that comes with the package, take the same
# number of tokens of Python's standard library, and differ in the mixture alone.
# `ul2r_eos` is U-PaLM's with EOS at the end of inputs with gaps, as `middle` has
# (`inputs_eos=True`), and as short runs need
# ([why](../results.md#why-the-inputs-end-with-eos-here)).

# %%
corpus = sources.load("stdlib")
train = encode(tokenizer, corpus.train[:250])
held_out = encode(tokenizer, corpus.validation[:40])
N_STEPS, SEQ_LEN, ROWS = 100, 128, 8


def continued(name, mixture):
    """The base after `N_STEPS` of a mixture."""
    with tempfile.TemporaryDirectory() as folder:
        config = TrainConfig(
            out=Path(folder) / name,
            start=Continue(PALM_TINY),
            data=DataConfig(
                mixture=mixture, seq_len=SEQ_LEN, batch_size=ROWS, joint_budget=True
            ),
            optimizer=Adafactor(Schedule("cosine", 1e-2, 1e-4), decay=False),
            n_steps=N_STEPS,
        )
        return fit(config, model, tokenizer, train, held_out, title=name)


models = {
    "base": model,
    "ul2r": continued("ul2r", "ul2r_eos"),
    "mine": continued("mine", mine),
}

# %% [markdown]
# ## Compare by kind of gap
#
# One loader makes held-out rows of all kinds; the loss is summed per denoiser.

# %%
kinds = (*ul2r.mixture("ul2r_eos"), replace(middle, weight=0.25))
names = [kind.name for kind in kinds]
config = DataConfig(mixture=kinds, seq_len=SEQ_LEN, batch_size=16, joint_budget=True)
test_rows = Loader(held_out, config, tokenizer.symbols, seed=1)
score = jax.jit(lambda m, rows: loss_fn(m, rows, n_denoisers=len(kinds))[1])


def bits_per_token(m, n_batches=24):
    """Cost of a target token by kind, and of each batch apart."""
    sums = [
        score(m, jax.tree.map(jnp.asarray, test_rows.batch(k)))
        for k in range(n_batches)
    ]
    nll = np.array([s.nll for s in sums]) / np.log(2)
    weight = np.array([s.weight for s in sums])
    return nll.sum(0) / weight.sum(0), nll, weight


costs = {name: bits_per_token(m) for name, m in models.items()}
for name, (bits, _, _) in costs.items():
    print(f"{name:5}", {kind: f"{b:.2f}" for kind, b in zip(names, bits, strict=True)})

# %% [markdown]
# The claim is about a difference of two models on the *same* gaps, so that is what we
# draw, with an interval from resampled batches.


# %%
def difference(kind, n_draws=1000):
    """Bits per token, mine minus ul2r: estimate and 95% interval."""
    (_, ours, weight), (_, theirs, _) = costs["mine"], costs["ul2r"]
    delta = (ours - theirs)[:, kind]
    picks = np.random.default_rng(0).integers(len(delta), size=(n_draws, len(delta)))
    draws = delta[picks].sum(1) / weight[:, kind][picks].sum(1)
    low, high = np.quantile(draws, (0.025, 0.975))
    return delta.sum() / weight[:, kind].sum(), low, high


differences = {name: difference(kind) for kind, name in enumerate(names)}

# %% mystnb={"image": {"alt": "Paired differences in bits per token between the own mixture and ul2r for four kinds of gap: the own mixture is better on its middle gap and worse on short spans."}}
figure, axes = plt.subplots(figsize=(7, 2.6), constrained_layout=True)
for y, (mean, low, high) in enumerate(differences.values()):
    colour = "#0072b2" if high < 0 else "#d55e00" if low > 0 else "#777777"
    axes.plot([low, high], [y, y], color=colour, linewidth=3, solid_capstyle="round")
    axes.plot(mean, y, "o", color=colour, markersize=8)
axes.axvline(0, color="black", linewidth=1)
axes.set_yticks(range(len(names)), names)
axes.set_xlabel("bits per token, mine minus ul2r (left of 0: mine is better)")
axes.invert_yaxis()
plt.show()

# %%
base_bits, mine_bits = costs["base"][0], costs["mine"][0]
assert mine_bits[names.index("middle")] < base_bits[names.index("middle")]
assert differences["middle"][2] < differences["r"][1], "it pays where it was trained"

# %% [markdown]
# Training on one kind of gap is best for that kind, and costs on the others: short
# scattered gaps with R's prompt were never seen. U-PaLM's mixture is a hedge.
#
# ## Now change this
#
# - Add `ul2r.R` with a weight of 0.5 to `mine`. Which difference moves first?
# - Set `share=0.5`. The gap now is as long as X's; is the cost per token higher?
# - Give `Middle` the mode `"nlu"`. Do its gaps still differ from R's?
#
# <details><summary>Answers</summary>
#
# - Look at `r` first. There `mine` is furthest behind.
# - Compare with `x` of the same table, whose gaps take half of the text as well.
# - The prompts then begin with the same token. How many gaps there are, and how long
#   they are, still differs; the model has to see it from the inputs.
#
# </details>
