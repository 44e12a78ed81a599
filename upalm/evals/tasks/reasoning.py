"""Chain-of-thought tasks (U-PaLM section 4.2): GSM8K, StrategyQA, CommonsenseQA and BIG-bench Hard.

GSM8K's eight exemplars are those of Wei et al. (2022); of StrategyQA's six and CommonsenseQA's seven there is no
data, so that ours are the first of Flan's pools. BIG-bench Hard comes with its own three (Suzgun et al. 2022).
"""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow, read
from upalm.evals.task import Generated, Question, Source, Task
from upalm.evals.text_metrics import canonical, last_number, same_number

_NEXT = ("\n\nQ:",)


_MOST_TOKENS = 256


def final_answer(text: str) -> str:
    """What follows the first "answer is", to the end of its line, without the full stop.

    >>> final_answer("It has four sides. So the answer is (C). Q: And")
    '(C)'
    >>> final_answer("So the answer is Monsters, Inc")
    'Monsters, Inc'
    """
    found = re.search(r"answer is[: ]*(.*?)(?:\.(?:\s|$)|\n|$)", text)
    return found[1].strip() if found else ""


def _final_number(text: str) -> str:
    return last_number(final_answer(text) or text)


# --- Word problems --------------------------------------------------------------------------------


def _gsm8k(row: BenchmarkRow) -> Question:
    reasoning, mark, answer = row.text("answer").rpartition("#### ")
    if not mark:
        raise ValueError(f"{row.where}: field 'answer' has no '#### ' before the number.")
    steps = re.sub(r"<<.*?>>", "", reasoning).strip().replace("\n", " ")
    solution = f" {steps} The answer is {canonical(answer)}."
    return Question(f"Q: {row.text('question')}\nA:", answers=(canonical(answer),), solution=solution)


def _wei(folder: Path) -> list[str]:
    rows = read(folder / "gsm8k/cot_8shot.json")
    return [f"Q: {row.text('question')}\nA: {row.text('cot_answer')}" for row in rows]


# --- Questions of common sense --------------------------------------------------------------------


def _pool(name: str, n: int, ask: Callable[[BenchmarkRow], Question], folder: Path) -> list[str]:
    """The first `n` rows of a pool, each with its rationale."""
    found = read(folder / f"nlp/{name}_cot_train_300.jsonl")[:n]
    return [ask(row).prompt + f" {row.text('rationale')} So the answer is {row.text('answer')}." for row in found]


def _strategy(row: BenchmarkRow) -> Question:
    """BIG-bench's columns."""
    scores = row.get("target_scores", dict, "an object")
    right = max(scores, key=lambda answer: scores[answer]).lower()
    return Question(f"Q: {row.text('input')}\nA:", answers=(right,), solution=f" The answer is {right}.")


def _strategy_pool(row: BenchmarkRow) -> Question:
    return Question(f"Q: {row.text('question')}\nA:", answers=(row.text("answer"),))


def _common_sense(row: BenchmarkRow) -> Question:
    choices = row.rows("question.choices")
    right = [choice.text("text") for choice in choices if choice.text("label") == row.text("answerKey")]
    if len(right) != 1:
        raise ValueError(f"{row.where}: field 'answerKey' is {row.text('answerKey')!r}, the label of no choice.")
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


def _bbh(row: BenchmarkRow) -> Question:
    target = row.text("target")
    prompt = f"Q: {row.text('input')}\nA: Let's think step by step."
    return Question(prompt, answers=(target,), solution=f"\nSo the answer is {target}.")


def _bbh_prompt(name: str, folder: Path) -> list[str]:
    """The description and the three exemplars of the published prompt, without its canary."""
    path = folder / f"bbh/cot-prompts/{name}.txt"
    if not path.is_file():
        raise ValueError(f"no file {path}: the exemplars of {name}.")
    _, rule, prompt = path.read_text(encoding="utf-8").partition("\n-----\n")
    description, *shots = prompt.strip().split("\n\nQ: ")
    if not rule or len(shots) != 3:
        raise ValueError(f"{path} has {len(shots)} exemplars after its rule, expected 3: it is of another version.")
    first, *others = [f"Q: {shot}" for shot in shots]
    return [f"{description}\n\n{first}", *others]


def _exact(prediction: str, answer: str) -> bool:
    """Spaces and case aside; brackets count, since some answers are nothing else."""
    return "".join(prediction.lower().split()) == "".join(answer.lower().split())


def _bbh_task(name: str) -> Task:
    family = next((f for f in ("logical_deduction", "tracking_shuffled_objects") if name.startswith(f)), name)
    return Generated(
        f"bbh_{name}",
        (Source(f"bbh/{name}.json", _bbh, field="examples", shots=partial(_bbh_prompt, name)),),
        max_new_tokens=_MOST_TOKENS,
        stop=_NEXT,
        extract=final_answer,
        metrics={"em": _exact},
        n_official=_SIZES.get(name, 250),
        group=f"bbh_{family}",
    )


BBH_TASKS: tuple[Task, ...] = tuple(map(_bbh_task, BBH))


TASKS: tuple[Task, ...] = (
    Generated(
        "gsm8k",
        (Source("gsm8k/test.jsonl", _gsm8k, shots=_wei),),
        max_new_tokens=_MOST_TOKENS,
        stop=_NEXT,
        extract=_final_number,
        metrics={"em": same_number},
        n_official=1319,
    ),
    Generated(
        "strategyqa",
        (
            Source(
                *("bigbench/task_json/strategyqa_600.json", _strategy, "examples"),
                shots=partial(_pool, "strategyqa", 6, _strategy_pool),
            ),
        ),
        max_new_tokens=_MOST_TOKENS,
        stop=_NEXT,
        extract=final_answer,
        metrics={"em": text_metrics.exact_words},
        n_official=2290,
    ),
    Generated(
        "commonsense_qa",
        (
            Source(
                *("nlp/commonsense_qa.jsonl", _common_sense),
                shots=partial(_pool, "commonsense_qa", 7, lambda row: Question(f"Q: {row.text('question')}\nA:")),
            ),
        ),
        max_new_tokens=_MOST_TOKENS,
        stop=_NEXT,
        extract=final_answer,
        metrics={"em": text_metrics.exact_words},
        n_official=1221,
    ),
    *BBH_TASKS,
)
