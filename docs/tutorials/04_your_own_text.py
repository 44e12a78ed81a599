# %% [markdown]
# # Your own text
#
# **Question:** if training is interrupted and resumed, is the result the same as if
# it had not been?
#
# You build a corpus from files, train a tokenizer and a small model on it with UL2R,
# stop in the middle, and resume. Then you compare with a run that was never stopped.
#
# <a href="../notebooks/04_your_own_text.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q upalm

# %%
import json
import os
import signal
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

from upalm.checkpoints import load_model
from upalm.data import DataConfig, SentencePiece, Shards, build, sources
from upalm.model import PALM
from upalm.training import Adafactor, Schedule, Scratch, TrainConfig, run

FOLDER = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A folder of text
#
# Put your own files here: text of any ending, JSON Lines with a `text` column,
# Parquet or Arrow. This page takes a few modules of Python's standard library, so
# that it runs anywhere.

# %%
(FOLDER / "texts").mkdir()
corpus = sources.load("stdlib")
for document in (*corpus.train[:80], *corpus.validation[:20]):
    name = document.name.replace("/", "_").removesuffix(".py") + ".txt"
    (FOLDER / "texts" / name).write_text(document.text)
texts = sorted((FOLDER / "texts").glob("*.txt"))
n_bytes = sum(path.stat().st_size for path in texts)
print(f"{len(texts)} files, {n_bytes / 1e6:.1f} MB")

# %% [markdown]
# ## Tokenizer and shards
#
# On the command line this is `upalm data build texts/ --out data --vocab-size 1024`.

# %%
documents = sources.load(str(FOLDER / "texts"))
tokenizer = SentencePiece.train([d.text for d in documents.train], 1024)
build(str(FOLDER / "texts"), str(FOLDER / "data"), tokenizer)
train = Shards(str(FOLDER / "data"), "train", tokenizer.hash)
validation = Shards(str(FOLDER / "data"), "validation", tokenizer.hash)
print(f"{train.n_tokens:,} tokens to train on, {validation.n_tokens:,} held out")
text = documents.validation[0].text
assert tokenizer.decode(tokenizer.encode(text)) == text, "no character is lost"
assert validation.n_tokens > 0, "a tenth of the files is held out by their names"

# %% [markdown]
# ## Train, and interrupt
#
# The settings of a run are one value. `run` does what `upalm run` does. We press
# Ctrl-C from a second thread once step 25 is logged: the step in flight ends, a
# checkpoint is written, and the process stops.

# %%
SIZE = replace(PALM["tiny"], vocab_size=1024, d_model=64, n_layers=2, seq_len=128)
settings = TrainConfig(
    out=FOLDER / "interrupted",
    start=Scratch(SIZE),
    data=DataConfig(
        source=str(FOLDER / "data"), mixture="ul2r_eos", seq_len=128, batch_size=8
    ),
    optimizer=Adafactor(Schedule("cosine", 1e-2, 1e-4), decay=False),
    n_steps=60,
    log_every=1,
    save_every=1000,
    eval_every=60,
)


def losses(folder):
    """Training loss by step."""
    path = folder / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def press_ctrl_c_after(step):
    """What you would do at the keyboard."""
    while step not in losses(settings.out):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells switch it off
threading.Thread(target=press_ctrl_c_after, args=(25,), daemon=True).start()
try:
    run(settings)
    raise AssertionError("the run was not interrupted")
except KeyboardInterrupt as interrupted:
    print(interrupted)
stopped_at = max(losses(settings.out))

# %% [markdown]
# ## Resume
#
# The same call again. It finds the checkpoint and takes the steps that are left.

# %%
run(settings)
resumed = losses(settings.out)
assert 25 <= stopped_at < 60 and max(resumed) == 60

# %% [markdown]
# ## The run that was never stopped

# %%
run(replace(settings, out=FOLDER / "whole"))
whole = losses(FOLDER / "whole")

# %% mystnb={"image": {"alt": "Training loss over 60 steps of the interrupted and the uninterrupted run: one line lies exactly on the other, also after the interruption."}}
figure, axes = plt.subplots(figsize=(7, 3.4), constrained_layout=True)
axes.plot(
    list(whole), list(whole.values()), color="#56b4e9", linewidth=6, label="whole"
)
axes.plot(list(resumed), list(resumed.values()), color="black", linewidth=1.2,
          label="interrupted and resumed")  # fmt: skip
axes.axvline(stopped_at, color="#d55e00", linestyle="--", label="Ctrl-C")
axes.set(xlabel="step", ylabel="loss in nats per token")
axes.legend(frameon=False)
plt.show()

# %%
assert resumed == whole, "every loss is the same to the last bit"
models = [load_model(FOLDER / name).model for name in ("interrupted", "whole")]
same = jax.tree.map(np.array_equal, *models)
assert all(jax.tree.leaves(same)), "so is every parameter"

# %% [markdown]
# A checkpoint holds the weights, the optimizer state and the step. The data needs no
# state at all: any batch is a function of the seed and the step.
#
# ## Now change this
#
# - Set `checkpoints=CheckpointConfig(minutes=1)`, and kill the process with SIGKILL
#   instead of Ctrl-C. How many steps are repeated? Are the losses still equal?
# - Resume with `replace(settings, n_steps=80)`. Read the refusal, then set
#   `changed=True`.
# - Point `texts` at files of your own and raise `n_steps` until the loss is flat.
