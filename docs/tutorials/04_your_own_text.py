# %% [markdown]
# # Your own text, interrupted and resumed
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
import shutil
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

SOURCE = ""  # a folder of your own text; empty takes Python's standard library
FOLDER = Path(tempfile.gettempdir()) / "upalm_your_own_text"
FRESH = True  # False keeps what an earlier run of this page left in FOLDER
if FRESH:
    shutil.rmtree(FOLDER, ignore_errors=True)

# %% [markdown]
# ## A folder of text
#
# Set `SOURCE` to your own: a folder with `.txt` files, JSON Lines with a `text`
# column, Parquet or Arrow, 200 KB or more. (`upalm data build --include '*.py'` takes
# files of any other ending.) Without one, this page writes a hundred modules of
# Python's standard library as text, so that it runs anywhere.

# %%
if not SOURCE:
    SOURCE = str(FOLDER / "texts")
    Path(SOURCE).mkdir(parents=True, exist_ok=True)
    corpus = sources.load("stdlib")
    for i, document in enumerate((*corpus.train[:80], *corpus.validation[:20])):
        (Path(SOURCE) / f"{i}.txt").write_text(document.text)
documents = sources.load(SOURCE)
every = (*documents.train, *documents.validation)
n_bytes = sum(len(document.text.encode()) for document in every)
print(f"{len(every)} documents, {n_bytes / 1e6:.1f} MB")

# %% [markdown]
# ## Tokenizer and shards
#
# On the command line this is `upalm data build SOURCE --out data --vocab-size 1024`.
# Files longer than 8 KiB become several documents.

# %%
tokenizer = SentencePiece.train([d.text for d in documents.train], 1024)
build(SOURCE, str(FOLDER / "data"), tokenizer)
train = Shards(str(FOLDER / "data"), "train", tokenizer.hash)
validation = Shards(str(FOLDER / "data"), "validation", tokenizer.hash)
print(f"{train.n_tokens:,} tokens to train on, {validation.n_tokens:,} held out")
text = documents.validation[0].text
assert tokenizer.decode(tokenizer.encode(text)) == text, "no character is lost"
assert validation.n_tokens > 0, "a tenth of the documents is held out"

# %% [markdown]
# ## Train, and interrupt
#
# The settings of a run are one value. `run` does what `upalm run` does. We press
# Ctrl-C from a second thread once step 25 is logged: the step in flight ends, a
# checkpoint is written, and the process stops.
#
# The mixture `ul2r_eos` is the one for runs as short as this. For a model to use take
# `ul2r_infill` or `ul2r_gaps` ([which](../ul2r_in_one_page.md#2-the-mixture)).

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
    save_every=10,
    eval_every=60,
)


def losses(folder):
    """Training loss by step."""
    path = folder / "metrics.jsonl"
    rows = map(json.loads, path.read_text().splitlines() if path.exists() else [])
    return {row["step"]: row["loss"] for row in rows if "loss" in row}


def press_ctrl_c_after(step):
    """Press Ctrl-C, as you would at the keyboard."""
    while step not in losses(settings.out):
        time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGINT)


if FRESH:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # some shells disable it
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
# - In `press_ctrl_c_after`, replace `signal.SIGINT` by `signal.SIGKILL`, which no
#   program can answer. The process dies. Run the page again with `FRESH = False`. How
#   many steps are repeated? Are the losses still equal?
# - Resume with `run(replace(settings, n_steps=80))`. Read the refusal, then add
#   `changed=True`.
# - Set `SOURCE` to text of your own and raise `n_steps` until the loss is flat.
#
# <details><summary>Answers</summary>
#
# - Those after the last checkpoint: five, if the process dies at step 25, since
#   `save_every` is 10. The losses and the parameters are equal to the last bit all
#   the same.
# - The refusal names the setting that differs, `n_steps: 60 there, 80 here`. (Its
#   `--changed` is the same on the command line.) With `changed=True` the run takes 20
#   more steps. They are not those of a run of 80 from the start, whose learning rate
#   falls more slowly.
# - That depends on the text. Set `eval_every=50` as well: if `validation_loss` in
#   `metrics.jsonl` rises while the training loss falls, the model learns its text by
#   heart.
#
# </details>
