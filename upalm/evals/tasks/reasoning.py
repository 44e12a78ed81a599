"""Chain-of-thought tasks (U-PaLM section 4.2): GSM8K, StrategyQA, CommonsenseQA and BIG-bench Hard.

GSM8K's eight exemplars are those of Wei et al. (2022). StrategyQA's six and CommonsenseQA's seven are not published as
data; the first rows of Flan's pools stand in. BIG-bench Hard comes with its own three (Suzgun et al. 2022).
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow, read, read_text
from upalm.evals.task import BuildQuestion, Generated, Question, Source, Task
from upalm.evals.text_metrics import Metric, canonical_number, last_number, same_number

_ANSWER_IS = re.compile(r"answer is[: ]*(.*?)(?:\.(?:\s|$)|\n|$)")
_DENIALS = ("not ", "unclear", "unknown")


def final_answer(text: str) -> str:
    """Return what follows the last "answer is", up to the end of its sentence or line.

    Text from the next "Q:" on is ignored, and so is "the answer is not ...".

    >>> final_answer("It has four sides. So the answer is (C). Q: And")
    '(C)'
    >>> final_answer("The answer is not clear. So the answer is Monsters, Inc")
    'Monsters, Inc'
    """
    return next(reversed(_find_answers(text)), "")


def _find_answers(text: str) -> list[str]:
    """Return every stated answer before the next question, denials only if there is nothing else."""
    answers = [m[1].strip() for m in _ANSWER_IS.finditer(re.split(r"\bQ: ", text)[0])]
    return [answer for answer in answers if not answer.lower().startswith(_DENIALS)] or answers


def final_number(text: str) -> str:
    """Return the last number of the last stated answer that has one, or the last number of the text.

    >>> final_number("The answer is not clear at 3. The answer is 7 of 9 or so"), final_number("3 + 4 = 7")
    ('9', '7')
    """
    numbers = [last_number(answer) for answer in _find_answers(text)]
    return next((number for number in reversed(numbers) if number), last_number(text))


# --- Word problems --------------------------------------------------------------------------------


def _build_gsm8k(row: BenchmarkRow) -> Question:
    reasoning, mark, answer = row.text("answer").rpartition("#### ")
    if not mark:
        raise ValueError(f"{row.location}: field 'answer' has no '#### ' before the number.")
    steps = re.sub(r"<<.*?>>", "", reasoning).strip().replace("\n", " ")
    solution = f" {steps} The answer is {canonical_number(answer)}."
    return Question(f"Q: {row.text('question')}\nA:", answers=(canonical_number(answer),), solution=solution)


def _load_gsm8k_shots(folder: Path) -> list[str]:
    rows = read(folder / "gsm8k/cot_8shot.json")
    return [f"Q: {row.text('question')}\nA: {row.text('cot_answer')}" for row in rows]


# --- Common sense --------------------------------------------------------------------


def _load_shots(file: str, n: int, folder: Path) -> list[str]:
    """Read the first `n` rows of a pool as exemplars with their rationale."""
    return [
        f"Q: {row.text('question')}\nA: {row.text('rationale')} So the answer is {row.text('answer')}."
        for row in read(folder / file)[:n]
    ]


def _pool_source(file: str, build: BuildQuestion, pool: str, n_shots: int, field: str = "") -> Source:
    return Source(file, build, field, shots=partial(_load_shots, pool, n_shots), needs=(pool,))


def _build_strategy(row: BenchmarkRow) -> Question:
    """Build a question from BIG-bench's columns."""
    scores = row.numbers("target_scores")
    right = max(scores, key=lambda answer: scores[answer]).lower()
    return Question(f"Q: {row.text('input')}\nA:", answers=(right,), solution=f" The answer is {right}.")


def _build_commonsense(row: BenchmarkRow) -> Question:
    choices = row.rows("question.choices")
    right = [choice.text("text") for choice in choices if choice.text("label") == row.text("answerKey")]
    if len(right) != 1:
        raise ValueError(f"{row.location}: field 'answerKey' is {row.text('answerKey')!r}, the label of no choice.")
    options = "".join(f"\n- {choice.text('text')}" for choice in choices)
    prompt = f"Q: {row.text('question.stem')}\nOptions:{options}\nA:"
    return Question(prompt, answers=(right[0],), solution=f" The answer is {right[0]}.")


# --- BIG-bench Hard -------------------------------------------------------------------------------

BBH = """
boolean_expressions causal_judgement date_understanding disambiguation_qa dyck_languages formal_fallacies
geometric_shapes hyperbaton logical_deduction_five_objects logical_deduction_seven_objects
logical_deduction_three_objects movie_recommendation multistep_arithmetic_two navigate object_counting
penguins_in_a_table reasoning_about_colored_objects ruin_names salient_translation_error_detection snarks
sports_understanding temporal_sequences tracking_shuffled_objects_five_objects tracking_shuffled_objects_seven_objects
tracking_shuffled_objects_three_objects web_of_lies word_sorting
""".split()


_SIZES = {"causal_judgement": 187, "penguins_in_a_table": 146, "snarks": 178}


def _build_bbh(row: BenchmarkRow) -> Question:
    target = row.text("target")
    prompt = f"Q: {row.text('input')}\nA: Let's think step by step."
    return Question(prompt, answers=(target,), solution=f"\nSo the answer is {target}.")


def _load_bbh_shots(name: str, folder: Path) -> list[str]:
    """Read the description and the three exemplars of the published prompt, without its canary."""
    path = folder / f"bbh/cot-prompts/{name}.txt"
    if not path.is_file():
        raise ValueError(f"no file {path}: the exemplars of {name}.")
    _, rule, prompt = read_text(path).replace("\r\n", "\n").partition("\n-----\n")
    description, *shots = prompt.strip().split("\n\nQ: ")
    if not rule or len(shots) != 3:
        raise ValueError(f"{path} has {len(shots)} exemplars after its rule, expected 3: it is of another version.")
    first, *others = [f"Q: {shot}" for shot in shots]
    return [f"{description}\n\n{first}", *others]


def _match_symbols(prediction: str, answer: str) -> bool:
    """Compare without spaces and case; brackets count, since some answers are nothing else."""
    return "".join(prediction.lower().split()) == "".join(answer.lower().split())


def _build_task(
    name: str, source: Source, extract: Callable[[str], str], metric: Metric, n: int, group: str = ""
) -> Task:
    """Build a task that is answered after a chain of thought, and has `n` published questions."""
    return Generated(
        name,
        (source,),
        max_new_tokens=256,
        stop=("\n\nQ:",),
        extract=extract,
        metrics={"em": metric},
        n_official=n,
        group=group,
    )


def _build_bbh_task(name: str) -> Task:
    family = next((f for f in ("logical_deduction", "tracking_shuffled_objects") if name.startswith(f)), name)
    prompt = f"bbh/cot-prompts/{name}.txt"
    source = Source(f"bbh/{name}.json", _build_bbh, "examples", partial(_load_bbh_shots, name), needs=(prompt,))
    return _build_task(f"bbh_{name}", source, final_answer, _match_symbols, _SIZES.get(name, 250), f"bbh_{family}")


_GSM8K = Source("gsm8k/test.jsonl", _build_gsm8k, shots=_load_gsm8k_shots, needs=("gsm8k/cot_8shot.json",))
_STRATEGY = _pool_source(
    "bigbench/task_json/strategyqa_600.json", _build_strategy, "nlp/strategyqa_cot_train_300.jsonl", 6, "examples"
)
_COMMONSENSE = _pool_source("nlp/commonsense_qa.jsonl", _build_commonsense, "nlp/commonsense_qa_cot_train_300.jsonl", 7)

BBH_TASKS: tuple[Task, ...] = tuple(map(_build_bbh_task, BBH))

TASKS: tuple[Task, ...] = (
    _build_task("gsm8k", _GSM8K, final_number, same_number, 1319),
    _build_task("strategyqa", _STRATEGY, final_answer, text_metrics.match_words, 2290),
    _build_task("commonsense_qa", _COMMONSENSE, final_answer, text_metrics.match_words, 1221),
    *BBH_TASKS,
)
