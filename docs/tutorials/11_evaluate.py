# %% [markdown]
# # Evaluate: suites, lm-eval, your own task
#
# **Question:** a model scores 0.6. Is that more than luck, more than another way of
# asking, and the number that others would get?
#
# We write a task, ask it of three models, compare them question by question, run one
# of the suites that come with the package, and repeat it all in lm-evaluation-harness.
#
# <a href="../notebooks/11_evaluate.ipynb" download>Download the notebook</a>

# %% tags=["skip-execution"]
# %pip install -q "upalm[lm-eval]"

# %%
import importlib.util
import json
import os
import random
import tempfile
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import upalm
from upalm.data import sources
from upalm.evals import (
    SUITES,
    PromptFormat,
    Question,
    Ranked,
    Scorer,
    Source,
    Suite,
    run_suite,
)
from upalm.evals.tasks import synthetic
from upalm.model import Decoder

FOLDER = Path(tempfile.mkdtemp())

# %% [markdown]
# ## A task of your own
#
# A task says where its questions are and how a row of the file becomes a question. This
# one asks which of four lines comes next in a Python file that the model has not seen.
# The model *ranks* the choices: its answer is the one with the highest log-probability.
# An excerpt has at most 240 characters, so it may begin in the middle of a line.

# %%
rng = random.Random(0)
files = [d.text.splitlines(keepends=True) for d in sources.load("stdlib").validation]
files = [lines for lines in files if len(lines) > 60]


def draw_line():
    """Six lines of some file, and the line after them."""
    while True:
        lines = rng.choice(files)
        i = rng.randrange(10, len(lines) - 10)
        if 12 < len(lines[i].strip()) < 50:
            return "".join(lines[i - 6 : i])[-240:], lines[i]


with open(FOLDER / "next_line.jsonl", "w", encoding="utf-8") as file:
    for _ in range(120):
        prompt, right = draw_line()
        choices = [right, *(draw_line()[1] for _ in range(3))]
        rng.shuffle(choices)
        row = {"prompt": prompt, "choices": choices, "gold": choices.index(right)}
        file.write(json.dumps(row) + "\n")


def build_question(row):
    """A row of the file as a question."""
    choices = row.texts("choices")
    return Question(row.text("prompt"), choices, (row.choice("gold", len(choices)),))


TASK = Ranked("next_line", (Source("next_line.jsonl", build_question),))
question = TASK.load(FOLDER).questions[0]
print(f"...{question.prompt}")
print(*(f"  {'->' if i in question.gold else '  '} {c!r}" for i, c in
        enumerate(question.choices)), sep="\n")  # fmt: skip

# %% [markdown]
# ## Three models, one of which knows nothing
#
# Random weights show what luck looks like. The base is asked in two ways: with the
# causal mask that it was trained with, and with U-PaLM's default, where the prompt
# sees itself in both directions. The base never learned the second.

# %%
base = upalm.load(upalm.PALM_TINY)
random_weights = Decoder(base.model.config, key=jax.random.key(0))
CAUSAL = PromptFormat(attention="causal")
scorers = {
    "random weights": Scorer(random_weights, base.tokenizer, CAUSAL),
    "base, prefix mask": Scorer(base.model, base.tokenizer),
    "base, causal mask": Scorer(base.model, base.tokenizer, CAUSAL),
}
mine = Suite("mine", "a task of my own", (TASK,))
results = {}
for name, scorer in scorers.items():
    ran = run_suite(scorer, mine, FOLDER, FOLDER / "records" / name)
    results[name] = ran.results["next_line"]
    print(f"{name:18} {results[name].score}, chance {results[name].chance:.2f}")

# %% [markdown]
# ## A suite
#
# The suites of the paper need published files, which `upalm eval fetch` gets. The
# suite `synthetic` makes its own. At this size it shows what a null result looks like.

# %%
synthetic.write(FOLDER, n=60)
ran = run_suite(
    scorers["base, causal mask"],
    SUITES["synthetic"],
    FOLDER,
    FOLDER / "synthetic_records",
)
for name, result in ran.results.items():
    results[name.replace("synthetic_", "synthetic: ")] = result
missing = SUITES["english26"].find_missing(FOLDER)
print(f"english26 lacks {len(missing)} of {SUITES['english26'].n_tasks} files, such as")
print("  boolq:", missing["boolq"])

# %% mystnb={"image": {"alt": "Accuracy with 95% intervals of eight evaluations, each beside its chance: random weights lie on chance, the base is far above it on the next line, a little better under the causal mask; the synthetic tasks lie near chance."}}
figure, axes = plt.subplots(figsize=(8, 3.6), constrained_layout=True)
for y, result in enumerate(results.values()):
    score = result.score
    above = score.low > result.chance
    colour = "#0072b2" if above else "#777777"
    axes.plot([score.low, score.high], [y, y], color=colour, linewidth=3)
    axes.plot(score.mean, y, "o", color=colour, markersize=8)
    axes.plot([result.chance] * 2, [y - 0.35, y + 0.35], color="#d55e00", linewidth=2)
axes.plot([], [], color="#d55e00", label="chance")
axes.set_yticks(range(len(results)), list(results))
axes.set(xlabel="accuracy (blue: its interval is above chance)", xlim=(0, 1))
axes.legend(frameon=False, loc="upper right")
axes.invert_yaxis()
plt.show()

# %%
luck = results["random weights"]
assert luck.score.low <= luck.chance <= luck.score.high, "no weights, no skill"
for name in ("base, prefix mask", "base, causal mask"):
    assert results[name].score.low > results[name].chance, "the base knows Python"

# %% [markdown]
# ## Compare question by question
#
# Every answer is a line of a file, so that an interrupted evaluation resumes, and so
# that two models can be compared on the *same* questions. That is sharper than looking
# whether two intervals overlap.


# %%
def is_right(name):
    """Whether each question was answered rightly, in the order of the file."""
    lines = (FOLDER / "records" / name / "next_line.jsonl").read_text().splitlines()
    records = sorted(map(json.loads, lines[1:]), key=lambda record: record["i"])
    return np.array([np.argmax(r["log_probs"]) in r["gold"] for r in records], float)


delta = is_right("base, causal mask") - is_right("base, prefix mask")
draws = np.random.default_rng(0).choice(delta, (2000, len(delta))).mean(1)
low, high = np.quantile(draws, (0.025, 0.975))
print(f"causal minus prefix: {delta.mean():+.3f} [{low:+.3f}, {high:+.3f}]")
assert low > 0, "the base answers better under the mask of its training"
print(f"{(delta != 0).sum()} of {len(delta)} questions have another answer")
scores = [results[name].score for name in ("base, causal mask", "base, prefix mask")]
assert abs(delta.mean() - (scores[0].mean - scores[1].mean)) < 1e-9
assert high - low < (scores[0].high - scores[0].low) + (scores[1].high - scores[1].low)

# %% [markdown]
# The intervals of the two accuracies overlap, and yet the base is better under the mask
# that it was trained with: the interval of the difference is above zero.
#
# The prompt format is part of the fingerprint of every record, so that answers to
# differently asked questions are never mixed.
#
# ## The same in lm-evaluation-harness
#
# `upalm.evals.harness` makes a checkpoint a model of lm-eval (`pip install
# "upalm[lm-eval]"`; without it this page says so and goes on). On the command line:
# `python -m upalm.evals.harness --model upalm --model_args checkpoint=RUN --tasks
# hellaswag`. Here lm-eval reads our file with its own description of the task.

# %%
WITH_LM_EVAL = importlib.util.find_spec("lm_eval") is not None
if WITH_LM_EVAL:
    os.environ |= {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    os.environ["HF_DATASETS_CACHE"] = str(FOLDER / "cache")
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.tasks import TaskManager

    from upalm.evals import harness

    assert harness.UpalmLM  # the import makes it known to lm-eval as "upalm"

    theirs = simple_evaluate(
        model="upalm",
        model_args={"checkpoint": str(upalm.PALM_TINY), "attention": "causal"},
        tasks=[
            {
                "task": "next_line",
                "dataset_path": "json",
                "dataset_kwargs": {
                    "data_files": {"test": str(FOLDER / "next_line.jsonl")}
                },
                "test_split": "test",
                "num_fewshot": 0,
                "output_type": "multiple_choice",
                "doc_to_text": "{{prompt}}",
                "doc_to_choice": "{{choices}}",
                "doc_to_target": "{{gold}}",
                "target_delimiter": "",
                "metric_list": [{"metric": "acc"}],
            }
        ],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    assert theirs is not None and "results" in theirs
    accuracy = theirs["results"]["next_line"]["acc,none"]
    print(
        f"lm-eval {accuracy:.3f}, upalm {results['base, causal mask'].score.mean:.3f}"
    )
    assert abs(accuracy - results["base, causal mask"].score.mean) < 1e-9
else:
    print('lm-eval is not installed: pip install "upalm[lm-eval]"')

# %% [markdown]
# ## Now change this
#
# - Add `shots=2` to the `Source`: the first two questions become examples in front of
#   the others. Do they help?
# - Replace `results[name].score` by `results[name].estimates["acc_per_token"]`. Which
#   normalisation do you report, and did you choose it before you saw the numbers?
# - Save `build_question` and `TASKS = [TASK]` as `mine.py`, and run
#   `upalm eval --suite ./mine.py --data FOLDER -c CHECKPOINT`.
#
# <details><summary>Answers</summary>
#
# - Compare the intervals, and then question by question: that is what tells a help
#   from luck.
# - The one that you chose before. Report the others beside it.
# - The score is that of this page, if the prompt format is the same.
#
# </details>
