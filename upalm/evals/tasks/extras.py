"""Tasks beside the paper's, from llm-foundry's local data and BIG-bench's JSON files."""

from upalm.evals import text_metrics
from upalm.evals.benchmark_files import BenchmarkRow
from upalm.evals.task import Generated, Question, Ranked, Source, Task
from upalm.evals.tasks.bigbench import build_foundry, build_question
from upalm.evals.tasks.multilingual import build_mgsm
from upalm.evals.text_metrics import canonical_number, last_number, same_number

_RANKED = ("conceptual_combinations", "logical_deduction_300", "novel_concepts", "strange_stories")


_GENERATED = """
conlang_translation cs_algorithms_300 dyck_languages_300 operators repeat_copy_logic simple_arithmetic
""".split()


_BIG_BENCH = ("date_understanding", "reasoning_about_colored_objects_400")


def _build_continuation(row: BenchmarkRow) -> Question:
    answer = row.text("continuation").strip()
    return Question(row.text("context").rstrip(), answers=(answer,), solution=" " + answer)


def _build_problem(row: BenchmarkRow) -> Question:
    answer = canonical_number(row.text("answer"))
    return Question(f"Q: {row.text('context')}\nA:", answers=(answer,), solution=f" {answer}")


def _build_aqua(row: BenchmarkRow) -> Question:
    answer = row.text("answer")
    return Question(f"Q: {row.text('context')}\nA:", answers=(answer,), solution=" " + answer)


def _match_tokens(prediction: str, answer: str) -> bool:
    """Compare what whitespace separates; brackets count."""
    return prediction.split() == answer.split()


TASKS: tuple[Task, ...] = (
    *(Ranked(name, (Source(f"bigbench/foundry/{name}.jsonl", build_foundry),)) for name in _RANKED),
    *(Ranked(name, (Source(f"bigbench/task_json/{name}.json", build_question, "examples"),)) for name in _BIG_BENCH),
    *(
        Generated(
            name,
            (Source(f"bigbench/foundry/{name}.jsonl", _build_continuation, shots=1),),
            max_new_tokens=64,
            metrics={"em": _match_tokens, "f1": text_metrics.word_f1},
        )
        for name in _GENERATED
    ),
    Generated(
        "svamp", (Source("nlp/svamp.jsonl", _build_problem, shots=1),), extract=last_number, metrics={"em": same_number}
    ),
    Generated("aqua", (Source("nlp/aqua.jsonl", _build_aqua, shots=1),), metrics={"em": _match_tokens}),
    build_mgsm("en"),
)
