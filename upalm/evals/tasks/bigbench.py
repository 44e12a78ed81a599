"""The 21 BIG-bench tasks of U-PaLM's emergent suite (Table 1): 5-shot, ranked, no chain of thought.

Files are BIG-bench's own (`bigbench/task_json/NAME.json`, or `bigbench/NAME/task.json`); where BIG-bench Hard or
llm-foundry has the same rows, theirs serve. The first five rows are the exemplars, and are not asked.
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


def ask(row: BenchmarkRow) -> Question:
    """BIG-bench's default template: the input, then the answer after "A:"."""
    scores = row.get("target_scores", dict, "an object of answers and scores")
    choices, best = tuple(" " + c for c in scores), max(scores.values(), default=0)
    gold = tuple(i for i, value in enumerate(scores.values()) if value == best)
    return Question(f"Q: {row.text('input').strip()}\nA:", choices, gold)


def _ask_hard(row: BenchmarkRow) -> Question:
    """BIG-bench Hard lists the options in the input: letters in brackets, or words after dashes."""
    text, _, options = row.text("input").partition("\nOptions:\n")
    forms = (r"^(\([A-Z]\)) ?(.*)$", r"^- ()(.*)$")
    found = next((some for form in forms if (some := re.findall(form, options, re.MULTILINE))), [])
    names = [letter or word for letter, word in found]
    gold = row.one_of("target", names)
    return Question(f"Q: {text}\nA:", tuple(" " + word for _, word in found), (gold,))


def ask_foundry(row: BenchmarkRow) -> Question:
    """llm-foundry's columns, `query`, `choices` and `gold`; the query ends with where the answer goes."""
    choices = tuple(row.texts("choices"))
    prompt = row.text("query").rstrip()
    return Question(prompt, tuple(" " + c for c in choices), (row.choice("gold", len(choices)),))


_ELSEWHERE = {
    "navigate": Source("bbh/navigate.json", _ask_hard, "examples", shots=_SHOTS),
    "hyperbaton": Source("bbh/hyperbaton.json", _ask_hard, "examples", shots=_SHOTS),
    "geometric_shapes": Source("bbh/geometric_shapes.json", _ask_hard, "examples", shots=_SHOTS),
    "snarks": Source("bbh/snarks.json", _ask_hard, "examples", shots=_SHOTS),
    "causal_judgment": Source("bbh/causal_judgement.json", _ask_hard, "examples", shots=_SHOTS),
    "strategyqa": Source("bigbench/task_json/strategyqa_600.json", ask, "examples", shots=_SHOTS),
    "understanding_fables": Source("bigbench/foundry/understanding_fables.jsonl", ask_foundry, shots=_SHOTS),
    "language_identification": Source("bigbench/foundry/language_identification_300.jsonl", ask_foundry, shots=_SHOTS),
}


def _task(name: str) -> Task:
    own = [
        Source(place, ask, "examples", shots=_SHOTS)
        for place in (f"bigbench/task_json/{name}.json", f"bigbench/{name}/task.json")
    ]
    elsewhere = [_ELSEWHERE[name]] if name in _ELSEWHERE else []
    return Ranked(f"bbes_{name}", (*own, *elsewhere))


TASKS: tuple[Task, ...] = tuple(map(_task, NAMES))
