"""The 21 BIG-bench tasks of U-PaLM's emergent suite (Table 1): 5-shot, ranked, no chain of thought.

Files are BIG-bench's own (`bigbench/task_json/NAME.json`, or `bigbench/NAME/task.json`); where BIG-bench Hard or
llm-foundry has the same rows, their files serve. The first five rows are exemplars, and are not scored.
"""

import re

from upalm.evals.benchmark_files import BenchmarkRow
from upalm.evals.task import Question, Ranked, Source, Task

_SHOTS = 5


NAMES = """
navigate strategyqa crass_ai logical_sequence vitaminc_fact_verification understanding_fables identify_odd_metaphor
hyperbaton causal_judgment english_proverbs geometric_shapes physics_questions snarks analogical_similarity
international_phonetic_alphabet_nli movie_dialog_same_or_different timedial question_selection
logical_fallacy_detection unit_interpretation language_identification
""".split()


def build_question(row: BenchmarkRow) -> Question:
    """Build a question with BIG-bench's default template: the input, then the answer after "A:"."""
    scores = row.numbers("target_scores")
    choices, best = tuple(" " + c for c in scores), max(scores.values())
    gold = tuple(i for i, value in enumerate(scores.values()) if value == best)
    return Question(f"Q: {row.text('input').strip()}\nA:", choices, gold)


def _build_hard(row: BenchmarkRow) -> Question:
    """Build a question from BIG-bench Hard: the input lists the options, after letters in brackets or dashes."""
    text, _, listing = row.text("input").partition("\nOptions:\n")
    patterns = (r"^(\([A-Z]\)) ?(.*)$", r"^- ()(.*)$")
    options = next((some for pattern in patterns if (some := re.findall(pattern, listing, re.MULTILINE))), [])
    gold = row.one_of("target", [letter or word for letter, word in options])
    return Question(f"Q: {text}\nA:", tuple(" " + word for _, word in options), (gold,))


def build_foundry(row: BenchmarkRow) -> Question:
    """Build a question from llm-foundry's columns: `query`, which ends before the answer, `choices` and `gold`."""
    choices = tuple(row.texts("choices"))
    prompt = row.text("query").rstrip()
    return Question(prompt, tuple(" " + c for c in choices), (row.choice("gold", len(choices)),))


_OTHER_SOURCES = {
    "navigate": ("bbh/navigate.json", _build_hard, "examples"),
    "hyperbaton": ("bbh/hyperbaton.json", _build_hard, "examples"),
    "geometric_shapes": ("bbh/geometric_shapes.json", _build_hard, "examples"),
    "snarks": ("bbh/snarks.json", _build_hard, "examples"),
    "causal_judgment": ("bbh/causal_judgement.json", _build_hard, "examples"),
    "strategyqa": ("bigbench/task_json/strategyqa_600.json", build_question, "examples"),
    "understanding_fables": ("bigbench/foundry/understanding_fables.jsonl", build_foundry),
    "language_identification": ("bigbench/foundry/language_identification_300.jsonl", build_foundry),
}


def _build_task(name: str) -> Task:
    places = (f"bigbench/task_json/{name}.json", f"bigbench/{name}/task.json")
    sources = [(place, build_question, "examples") for place in places]
    sources += [_OTHER_SOURCES[name]] if name in _OTHER_SOURCES else []
    return Ranked(f"bbes_{name}", tuple(Source(*source, shots=_SHOTS) for source in sources))


TASKS: tuple[Task, ...] = tuple(map(_build_task, NAMES))
