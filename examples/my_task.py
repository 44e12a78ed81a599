"""An evaluation task of your own, and a suite with it: is a number in a list?

python examples/my_task.py               # evaluates the shipped model
python examples/my_task.py questions/    # the same, and keeps the questions and a record of each answer there
upalm eval -c CHECKPOINT --suite ./examples/my_task.py --data questions/    # the same suite on a checkpoint of yours
"""

import json
import random
import sys
import tempfile
from pathlib import Path

import upalm
from upalm.evals import Question, Ranked, Scorer, Source, Suite, run_suite
from upalm.evals.benchmark_files import BenchmarkRow


def build_question(row: BenchmarkRow) -> Question:
    """A row of the file as a question with two choices, of which `gold` is right."""
    return Question(f"[{row.text('items')}] has {row.text('item')}:", (" no", " yes"), (row.choice("label", 2),))


TASK = Ranked("membership", (Source("membership.jsonl", build_question, shots=2),))  # the first two rows are exemplars
SUITE = Suite("mine", "tasks of my own", (TASK,))


def write_questions(folder: Path, n: int) -> None:
    """Lists of four digits; half of the questions have the answer yes."""
    rng = random.Random(0)
    with open(folder / "membership.jsonl", "w", encoding="utf-8") as file:
        for i in range(n):
            digits = rng.sample(range(10), 5)
            row = {"items": " ".join(map(str, digits[:4])), "item": str(digits[3 + (i % 2 == 0)]), "label": i % 2}
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as unnamed:
        folder = Path(sys.argv[1] if len(sys.argv) > 1 else unnamed)
        folder.mkdir(parents=True, exist_ok=True)
        write_questions(folder, 42)
        opened = upalm.load()  # or the folder of any checkpoint
        result = run_suite(Scorer(opened.model, opened.tokenizer), SUITE, folder, folder / "records")
        score = result.results["membership"].score
        print(f"accuracy {score.mean:.2f} [{score.low:.2f}, {score.high:.2f}] on {score.n} questions, chance 0.50")
        assert score.n == 40
