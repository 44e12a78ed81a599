# %% [markdown]
# # What the model sees
#
# **Question:** which positions can a prediction depend on, and does the model keep to
# it?
#
# U-PaLM changes one thing about PaLM itself: the inputs of an example are seen in
# both directions (U-PaLM section 2.2). Several examples share a row, and none may
# look into another. We draw the rule, then ask the gradients what the model really
# reads. The two pictures must be equal.
#
# <a href="../notebooks/03_what_the_model_sees.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from upalm import ul2r
from upalm.data import DataConfig, Loader, Tokens
from upalm.model import Decoder, ModelConfig, key_range

# %% [markdown]
# ## A packed row
#
# Short documents of invented ids become rows of 48 positions. A row holds several
# examples, and the last one is cut to fit. What is left is *padding*, if it is too
# short for another example, or if a document ends there. In a row as short as this
# one that is a tenth; the rows of a real run are longer, and hardly a position is
# lost ([data](../data.md#what-the-loader-promises)).

# %%
T = 48
documents = [range(100 + 20 * i, 109 + 20 * i + 5 * (i % 2)) for i in range(35)]
symbols = ul2r.Symbols(
    tuple(range(999, 899, -1)), {"nlu": (7,), "nlg": (8,), "s2s": (9,)}
)
config = DataConfig(
    mixture="ul2r", seq_len=T, batch_size=1, joint_budget=True, layout="documents"
)
tokens = Tokens.from_documents([list(document) for document in documents])
loader = Loader(tokens, config, symbols, seed=0)
rows = [loader.batch(step) for step in range(20)]
batch = next((b for b in rows if b.segment_ids.max() >= 3), rows[0])
n_segments = int(batch.segment_ids.max())
n_padding = int((batch.segment_ids == 0).sum())
print(f"{n_segments} examples in one row, {n_padding} of {T} positions of padding")

# %% mystnb={"image": {"alt": "One packed row as five strips: numbered segments and blank padding at the end, positions that restart in each segment, the prefix, loss weights, and which tokens are sentinels."}}
in_use = batch.segment_ids[0] > 0
strips = {
    "segment": batch.segment_ids[0] / n_segments,
    "position": batch.positions[0] / batch.positions.max(),
    "prefix": batch.prefix_mask[0],
    "loss": batch.loss_weights[0],
    "sentinel": np.isin(batch.input_tokens[0], symbols.sentinels),
}
figure, axes = plt.subplots(len(strips), 1, figsize=(7, 2.8), sharex=True)
for axis, (name, values) in zip(axes, strips.items(), strict=True):
    shown = np.where(in_use, np.asarray(values, float), np.nan)
    axis.imshow(shown[None], aspect="auto", cmap="cividis", vmin=0, vmax=1)
    axis.set_yticks([0], [name])
names = {segment: f"{segment}" for segment in range(1, n_segments + 1)} | {0: "padding"}
middle = {n: np.flatnonzero(batch.segment_ids[0] == n).mean() for n in names}
for number, name in names.items():
    colour = "black" if number in (0, n_segments) else "white"
    axes[0].text(middle[number], 0, name, color=colour, ha="center", va="center")
axes[-1].set_xlabel("position in the row (of the last three strips, yellow is yes)")
figure.tight_layout(h_pad=0.1)
plt.show()

# %% [markdown]
# Positions restart with each segment, the prefix covers the inputs, and only targets
# carry loss. A loss weight stands at the position that *predicts* a target: inputs
# are shifted right by one, so the last position of the prefix predicts the first
# target.

# %%
targets = batch.loss_weights[0] > 0
assert not np.any(batch.loss_weights[0][batch.segment_ids[0] == 0]), "no padding"
for segment in range(1, n_segments + 1):
    here = batch.segment_ids[0] == segment
    assert batch.positions[0][here][0] == 0, "positions restart"
    last_prefix = np.flatnonzero(here & batch.prefix_mask[0])[-1]
    assert targets[last_prefix], "the last input predicts the first target"

# %% [markdown]
# ## The rule
#
# A query sees its own segment, from its start up to the end of its prefix, or up to
# itself where that is later. So a range of keys, `[start, end)`, says all there is to
# say: the mask is never stored.

# %%
visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask))
keys = np.arange(T)
rule = (keys >= visible.start[0][:, None]) & (keys < visible.end[0][:, None])

same_segment = batch.segment_ids[0][:, None] == batch.segment_ids[0]
causal = keys[:, None] >= keys
both_prefix = batch.prefix_mask[0][:, None] & batch.prefix_mask[0]
assert np.array_equal(rule, same_segment & (causal | both_prefix))

# %% [markdown]
# ## What the model reads
#
# Give every position a token of its own. Then the gradient of one position's output
# by the embedding of token `k` is zero exactly if that output does not depend on
# position `k`. A small model with random weights is enough: what random weights
# cannot see, no training can reveal.

# %%
size = ModelConfig(
    vocab_size=T, d_model=32, n_layers=3, n_heads=2, d_head=16, d_ff=64, seq_len=T
)
model = Decoder(size, key=jax.random.key(0))
own_tokens = batch._replace(input_tokens=np.arange(T, dtype=np.int32)[None])
direction = jax.random.normal(jax.random.key(1), (size.d_model,))


def outputs(embed):
    """One number per position, given the embedding table."""
    replaced = eqx.tree_at(lambda model: model.embed, model, embed)
    return replaced.hidden(own_tokens)[0] @ direction


gradient = jax.jacrev(outputs)(model.embed)  # [query, key, D]
read = np.asarray(jnp.any(gradient != 0, axis=-1))

# %% mystnb={"image": {"alt": "Two square pictures side by side, the rule and the support of the gradients: the same blocks along the diagonal, square where the prefix is and triangular below; the rows of padding are blank."}}
figure, axes = plt.subplots(1, 2, figsize=(9, 4.6), constrained_layout=True)
for axis, picture, title in zip(
    axes, (rule, read), ("the rule", "what gradients reach"), strict=True
):
    axis.imshow(picture & in_use[:, None], cmap="Blues", vmin=0, vmax=1.3)
    axis.set(title=title, xlabel="position that is seen", ylabel="position that sees")
    for segment in range(1, n_segments + 1):
        left, *_, bottom = np.flatnonzero(batch.segment_ids[0] == segment)
        axis.text(left, bottom, f"segment {segment}", color="white", fontsize=8)
    axis.text(T - 1, T - 1, "padding", ha="right", fontsize=8)
plt.show()

# %%
assert np.array_equal(rule[in_use], read[in_use]), "the model sees what the rule allows"

# %% [markdown]
# The squares are prefixes, seen in both directions. The triangles below them are
# targets, which see the past alone. Everything between segments is empty: packing
# changes no prediction. The rows of padding are left blank: the rule makes one more
# segment of them, which no loss reads and no other position sees.
#
# ## Packed equals alone

# %%
first = int((batch.segment_ids[0] == 1).sum())
alone = ul2r.Batch(*(np.asarray(x)[:, :first] for x in own_tokens))
difference = model(own_tokens)[:, :first] - model(alone)
print(f"largest difference of a logit: {jnp.max(jnp.abs(difference)):.1e}")
assert jnp.max(jnp.abs(difference)) < 1e-4

# %% [markdown]
# ## The same row under a causal mask

# %%
causal_rows = own_tokens.causal()
range_of_causal = key_range(
    jnp.asarray(causal_rows.segment_ids), jnp.asarray(causal_rows.prefix_mask)
)
n_prefix_lm = int(rule[in_use].sum())
n_causal = int((range_of_causal.end - range_of_causal.start)[0][in_use].sum())
print(f"{n_prefix_lm} pairs are visible with a prefix, {n_causal} without")
assert n_causal < n_prefix_lm

# %% [markdown]
# That difference is all that the model gains. The parameters are the same, which is
# why a causal checkpoint can be continued with it.
#
# ## Now change this
#
# - Set `layout="concatenated"`, the paper's: documents are cut end to end. How many
#   examples are in a row now?
# - Set `mixture="causal"`. Which of the five strips becomes constant?
# - Give the model one layer. Do the pictures still agree? Why would they?
#
# <details><summary>Answers</summary>
#
# - One: a chunk may now be as long as the row, and with two exceptions in these 20
#   rows nothing is padding.
# - That of the sentinels, which is empty, and that of the loss, which has a weight at
#   every position of an example. The prefix is the first position of each segment
#   alone. The last assertion fails, since there is nothing left to gain.
# - Yes. What a position sees, sees nothing that this position does not see itself. So
#   a second layer reaches no further than the first.
#
# </details>
