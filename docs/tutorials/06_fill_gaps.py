# %% [markdown]
# # Fill gaps
#
# **Question:** how do you ask for several gaps at once, keep an answer inside its
# limits, and know how sure the model is of each token?
#
# <a href="../notebooks/06_fill_gaps.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
import matplotlib.pyplot as plt
import numpy as np

import upalm

# %% [markdown]
# ## A model that knows gaps
#
# `upalm.load()` opens a model that the package ships, a base of Python source continued
# with UL2R; `upalm.load("runs/x")` opens one of yours. A model of 2.4M parameters
# writes poor code: on this page, look at the form of the answers.

# %%
model = upalm.load()
print(model.info)
assert model.info.gaps_trained

# %% [markdown]
# ## One gap
#
# Write `<extra_id_0>` where something is missing.

# %%
text = "import os\n\ndef size(path):\n    return os.path.<extra_id_0>(path)\n"
filled = model.infill(text, upalm.GenerationConfig(max_new_tokens=6))
print(filled.text)
print(filled.spans, f"log-probability {filled.logprob:.1f}", filled.finish_reasons)
assert filled.text == text.replace("<extra_id_0>", filled.spans[0])

# %% [markdown]
# ## Several gaps, limits and stops
#
# Each gap has a limit of its own. A stop string ends a span wherever the tokens cut
# it. The grammar sees to the form: one span per gap, in order, and an end.

# %%
text = "def mean(<extra_id_0>):\n    total = <extra_id_1>\n    return <extra_id_2>\n"
settings = upalm.GenerationConfig(max_new_tokens=(4, 10, 10), stop=("\n",))
filled = model.infill(text, settings)
print(filled.text)
for limit, span in zip((4, 10, 10), filled.spans, strict=True):
    assert len(model.tokenizer.encode(span)) <= limit + 1 and "\n" not in span
assert filled.format_ok and len(filled.spans) == 3

# %% [markdown]
# ## Many answers, ranked
#
# A sample depends on its seed, its prompt and its number alone. The likeliest comes
# first; the others are `alternatives`.

# %%
text = "for <extra_id_0> in range(10):\n    print(i)\n"
settings = upalm.GenerationConfig(
    max_new_tokens=5,
    sampler=upalm.Sampler(temperature=0.9, top_p=0.95),
    num_samples=12,
    seed=1,
)
best = model.infill(text, settings)
ranked = [best, *best.alternatives]
for answer in ranked[:5]:
    print(f"{answer.logprob:7.2f}  {answer.spans[0]!r}")
logprobs = [answer.logprob for answer in ranked]
assert logprobs == sorted(logprobs, reverse=True) and len(ranked) == 12
in_a_batch = model.infill_batch([text, "x = <extra_id_0>\n"], settings)[0]
assert in_a_batch.spans == best.spans, "a batch changes nothing"

# %% [markdown]
# ## How sure is it, token by token?
#
# `score` gives the log-probability of every token of an answer, whoever wrote it.
# Here are the true lines of a function, as spans of three gaps. Dark tokens surprise
# the model.

# %%
parts = ["def mean(", "):\n    total = ", "\n    return total / ", "\n"]
truth = ["values", "sum(values)", "len(values)"]
marked = [f"{part}<extra_id_{i}>" for i, part in enumerate(parts[:-1])]
prompt = "".join(marked) + parts[-1]
score = model.score(prompt, truth, mode="nlg")
ids = []
for sentinel, span in zip(model.tokenizer.symbols.sentinels, truth, strict=False):
    ids += [sentinel, *model.tokenizer.encode(span)]
ids += [model.tokenizer.symbols.eos_id]
words = [model.tokenizer.decode([i]) or "end" for i in ids]
surprise = -score.log_probs / np.log(2)
assert len(words) == len(surprise)
first, *later = [
    bits for word, bits in zip(words, surprise, strict=True) if "val" in word
]
assert max(later) < first, "a repeated name costs less than its first use"

# %% mystnb={"image": {"alt": "The tokens of three true spans in a row, shaded by how many bits each costs; a bar over each token shows the same number."}}
figure, axes = plt.subplots(figsize=(9, 3), constrained_layout=True)
shade = plt.cm.Oranges(0.1 + 0.8 * surprise / surprise.max())
axes.bar(range(len(words)), surprise, color=shade, edgecolor="#777777")
labels = [word.replace("extra_id_", "") for word in words]
axes.set_xticks(range(len(words)), labels, rotation=60, ha="right", family="monospace")
axes.set_ylabel("bits")
axes.set_title(f"{surprise.sum():.0f} bits in all", fontsize=10, loc="left")
plt.show()

# %% [markdown]
# Here a repeated name costs less than its first use. The model can read it in its own
# answer. But it may also be that `values` is likelier inside `sum(` than as a
# parameter: one example does not tell these apart.
#
# ## While it is being written

# %%
text = "class Stack:\n    def push(self, item):\n        <extra_id_0>\n"
settings = upalm.GenerationConfig(max_new_tokens=12)
pieces = list(model.stream(text, settings))
print([piece.text for piece in pieces])
assert "".join(piece.text for piece in pieces) == model.infill(text, settings).spans[0]

# %% [markdown]
# ## Modes by infill: the paper's grid
#
# A mode token in front of a prompt says which denoiser it resembles: `nlu` short gaps,
# `nlg` long ones, `s2s` a continuation. U-PaLM asks one prompt in eight ways: with
# each of the three or none, and with and without `<extra_id_0>` at the end (section
# 4.2). There the answers differ in style. One prompt and a model of this size say
# nothing about which is better: see how many of the eight differ at all.

# %%
prompt = "def largest(items):\n    "
grid = {}
for mode in ("none", "s2s", "nlu", "nlg"):
    settings = upalm.GenerationConfig(mode=mode, max_new_tokens=14, stop=("\n",))
    grid[mode, "plain"] = model.generate(prompt, settings).text
    grid[mode, "infill"] = model.generate(prompt + "<extra_id_0>", settings).text

# %% mystnb={"image": {"alt": "A table of eight answers to one prompt: rows are the four mode tokens, columns are with and without a sentinel at the end."}}
figure, axes = plt.subplots(figsize=(9, 2.2), constrained_layout=True)
axes.axis("off")
modes = ("none", "s2s", "nlu", "nlg")
ways = ("plain", "infill")
texts = [[repr(grid[mode, way]) for way in ways] for mode in modes]
cells = [[t if len(t) <= 44 else t[:41] + "..." for t in row] for row in texts]
table = axes.table(
    cells, rowLabels=modes, colLabels=("prompt", "prompt <extra_id_0>"), cellLoc="left",
    loc="center",
)  # fmt: skip
table.auto_set_font_size(False)
table.set_fontsize(9)
table.scale(1, 1.5)
plt.show()

# %%
print(f"{len(set(grid.values()))} different answers of {len(grid)}")
assert len(set(grid.values())) > 1, "how it is asked changes the answer"

# %% [markdown]
# ## Now change this
#
# - Set `constrained=False` in the second example, and look at `format_ok`.
# - Swap two spans of `truth`. Which tokens pay for it?
# - How much does the model gain from the lines after a gap? Score the first span
#   alone, `model.score((parts[0], after), truth[:1], mode="nlg")`, with `after =
#   "):\n    return sum(values) / len(values)\n"` and with `after = "):\n    return
#   0\n"`. (A causal mask would not tell: the answer comes after the whole prompt, and
#   reads those lines under either mask.)
#
# <details><summary>Answers</summary>
#
# - It is false if the answer leaves out a gap (`finish_reasons` says "missing").
# - Compare the sums of `surprise`: the smaller the difference, the less this model
#   knows which of the two belongs where.
# - Write `numbers` for `values` in those lines, too. What is left of the gain comes
#   from the shape of the lines and not from the word.
#
# </details>
