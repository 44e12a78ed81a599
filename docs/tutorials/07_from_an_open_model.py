# %% [markdown]
# # From an open model through UL2R to one that others serve
#
# **Question:** is the model that leaves upalm the model that transformers loads,
# number for number?
#
# The whole path: import a checkpoint, continue it with UL2R on your text, export it,
# and fill a gap in transformers without any code of upalm. Here the checkpoint is a
# small one with random weights, so that the page builds anywhere. With network or a
# folder at hand, set `SOURCE` to a real one.
#
# <a href="../notebooks/07_from_an_open_model.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q "upalm[hf]" torch transformers

# %%
import tempfile
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np

warnings.filterwarnings("ignore", "IProgress not found")  # text will do

import tokenizers
import torch
import transformers

import upalm
from upalm import ul2r
from upalm.checkpoints import load_model
from upalm.data import DataConfig, sources
from upalm.interop import export_hf, import_hf
from upalm.training import Adafactor, Continue, Schedule, TrainConfig, run

FOLDER = Path(tempfile.mkdtemp())
SOURCE = None  # a folder with config.json and safetensors, or a name on the hub

# %% [markdown]
# ## A stand-in for an open checkpoint
#
# Cohere's architecture (Command-R, Aya) with one key-value head is PaLM's, so we take
# that. The page [Open checkpoints](../open_checkpoints.md) lists the others that come
# in and go out, Llama's and Qwen's among them. The tokenizer is a byte-level one, as
# open models have, with reserved tokens that become sentinels.

# %%
corpus = sources.load("stdlib")
if SOURCE is None:
    SOURCE = FOLDER / "open"
    SOURCE.mkdir()
    bpe = tokenizers.Tokenizer(tokenizers.models.BPE())
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = tokenizers.decoders.ByteLevel()
    reserved = [f"<|reserved_token_{i}|>" for i in range(100)]
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<PAD>", "<BOS>", "<EOS>", *reserved],
        initial_alphabet=tokenizers.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator([document.text for document in corpus.train[:30]], trainer)
    bpe.save(str(SOURCE / "tokenizer.json"))
    torch.manual_seed(0)
    shape = transformers.CohereConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=1,
        max_position_embeddings=256,
        logit_scale=0.3,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    transformers.CohereForCausalLM(shape).save_pretrained(SOURCE)

# %% [markdown]
# ## Import, and compare
#
# On the command line: `upalm import-hf SOURCE --out models/base`.

# %%
import_hf(SOURCE, FOLDER / "base")
base = load_model(FOLDER / "base")
text = corpus.validation[0].text[:400]
ids = np.array([base.tokenizer.symbols.bos_id, *base.tokenizer.encode(text)])[None]


def in_transformers(folder, ids):
    """Logits under transformers' own causal mask."""
    with torch.inference_mode():
        model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
        return model(torch.from_numpy(ids)).logits.numpy()


def in_upalm(model, ids):
    """Logits of one segment without a prefix, which is the causal mask."""
    rows = ul2r.Batch.empty(1, ids.shape[1])
    rows.input_tokens[:], rows.segment_ids[:] = ids, 1
    rows.positions[:] = np.arange(ids.shape[1])
    return np.asarray(model(rows))


theirs = in_transformers(SOURCE, ids)
ours = in_upalm(base.model, ids)[..., : theirs.shape[-1]]
print(
    f"largest difference of {theirs.size:,} logits: {np.abs(theirs - ours).max():.1e}"
)
assert np.abs(theirs - ours).max() < 1e-4

# %% [markdown]
# ## Continue it with UL2R
#
# On the command line: `upalm run ul2r --checkpoint models/base --data TEXT --out
# runs/ul2r`. The weights are loaded, the optimizer starts afresh. `ul2r_eos` is the
# mixture for a run as short as this. The recipe takes `ul2r_infill`
# ([which](../ul2r_in_one_page.md#2-the-mixture)).

# %%
(FOLDER / "texts").mkdir()
for i, document in enumerate((*corpus.train[:40], *corpus.validation[:10])):
    (FOLDER / "texts" / f"{i}.txt").write_text(document.text)
config = TrainConfig(
    out=FOLDER / "ul2r",
    start=Continue(FOLDER / "base"),
    data=DataConfig(
        source=str(FOLDER / "texts"), mixture="ul2r_eos", seq_len=128, batch_size=8
    ),
    optimizer=Adafactor(Schedule("cosine", 1e-2, 1e-4), decay=False),
    n_steps=60,
)
run(config)

# %% [markdown]
# ## Export, and compare again
#
# On the command line: `upalm export-hf --checkpoint runs/ul2r --out models/ul2r`.

# %%
export_hf(FOLDER / "ul2r", FOLDER / "exported")
trained = upalm.load(FOLDER / "ul2r")
theirs_after = in_transformers(FOLDER / "exported", ids)
ours_after = in_upalm(trained.model, ids)[..., : theirs_after.shape[-1]]

# %% mystnb={"image": {"alt": "Two scatter plots of logits, upalm against transformers, after import and after export: all points lie on the diagonal."}}
figure, axes = plt.subplots(1, 2, figsize=(8, 3.8), constrained_layout=True)
pairs = {"imported": (theirs, ours), "UL2R, exported": (theirs_after, ours_after)}
for axis, (title, (x, y)) in zip(axes, pairs.items(), strict=True):
    axis.plot(x.ravel()[::37], y.ravel()[::37], ".", markersize=3, color="#0072b2")
    ends = [x.min(), x.max()]
    axis.plot(ends, ends, color="#d55e00", linewidth=1)
    axis.set(xlabel="logit in transformers", ylabel="logit in upalm")
    axis.set_title(f"{title}: differs by {np.abs(x - y).max():.0e}", fontsize=10)
plt.show()

# %%
assert np.abs(theirs_after - ours_after).max() < 1e-4
assert np.abs(theirs_after - theirs).max() > 0.1, "training changed the model"

# %% [markdown]
# ## A gap, scored by transformers
#
# A mask is all that it takes: the prompt sees itself in both directions, the answer
# sees what came before. Here is the cost of the same answer, token by token.

# %%
model = transformers.AutoModelForCausalLM.from_pretrained(FOLDER / "exported").eval()
symbols, encode = trained.tokenizer.symbols, trained.tokenizer.encode
before, after, answer = "def add(a, b):\n    ", "\n    return c\n", "c = a + b"
prompt = [symbols.bos_id, *encode("[NLG]"), *encode(before), symbols.sentinels[0]]
prompt += [*encode(after), symbols.eos_id]  # `ul2r_eos` ends its inputs with EOS
target = [symbols.sentinels[0], *encode(answer), symbols.eos_id]

n_prompt, n = len(prompt), len(prompt) + len(target)
visible = torch.ones(n, n, dtype=torch.bool).tril()
visible[:n_prompt, :n_prompt] = True
mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
with torch.inference_mode():
    logits = model(torch.tensor([prompt + target]), attention_mask=mask).logits[0]
of_target = torch.log_softmax(logits[n_prompt - 1 : -1], -1)
served = of_target[range(len(target)), target].numpy()
score = trained.score((before, after), [answer], mode="nlg")
for i, here, there in zip(target, score.log_probs, served, strict=True):
    print(f"{trained.tokenizer.decode([i]) or 'end':14} {here:8.4f} {there:8.4f}")
assert np.abs(score.log_probs - served).max() < 1e-4

# %% [markdown]
# ## Now change this
#
# - Set `SOURCE` to a real checkpoint, such as `HuggingFaceTB/SmolLM2-135M`, and train
#   on your own text.
# - Import with `norm="rms"`. The logits stay the same; why is there no way back?
# - Give the stand-in four key-value heads. Which of the comparisons notices?
#
# <details><summary>Answers</summary>
#
# - [Open checkpoints](../open_checkpoints.md) says which come in, and how close their
#   logits are.
# - The mean that LayerNorm subtracts is made 0 by centring the weights, so the logits
#   stay. Cohere's class has no place for the untied output embeddings that this
#   leaves.
# - None should. Both sides compute with the same four heads.
#
# </details>
