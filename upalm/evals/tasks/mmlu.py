"""MMLU (Hendrycks et al. 2021): 57 subjects, 5-shot, the letter alone (U-PaLM section 4.2)."""

from functools import partial
from pathlib import Path

from upalm.evals.benchmark_files import BenchmarkRow, read
from upalm.evals.task import Question, Ranked, Source, Task

_LETTERS = "ABCD"


SUBJECTS = """
abstract_algebra anatomy astronomy business_ethics clinical_knowledge college_biology college_chemistry
college_computer_science college_mathematics college_medicine college_physics computer_security conceptual_physics
econometrics electrical_engineering elementary_mathematics formal_logic global_facts high_school_biology
high_school_chemistry high_school_computer_science high_school_european_history high_school_geography
high_school_government_and_politics high_school_macroeconomics high_school_mathematics high_school_microeconomics
high_school_physics high_school_psychology high_school_statistics high_school_us_history high_school_world_history
human_aging human_sexuality international_law jurisprudence logical_fallacies machine_learning management marketing
medical_genetics miscellaneous moral_disputes moral_scenarios nutrition philosophy prehistory professional_accounting
professional_law professional_medicine professional_psychology public_relations security_studies sociology
us_foreign_policy virology world_religions
""".split()


def _build_question(row: BenchmarkRow) -> Question:
    choices = row.texts("choices")
    if len(choices) != len(_LETTERS):
        raise row.error("choices", list(choices), "four strings")
    listed = "".join(f"({letter}) {choice}\n" for letter, choice in zip(_LETTERS, choices, strict=True))
    letters = tuple(f" ({letter})" for letter in _LETTERS)
    return Question(f"{row.text('question').strip()}\n{listed}Answer:", letters, (row.choice("answer", len(choices)),))


def _load_shots(file: str, folder: Path) -> list[str]:
    return [_build_question(row).as_exemplar() for row in read(folder / file)]


def _build_task(subject: str) -> Task:
    dev = f"mmlu/{subject}_dev.jsonl"
    source = Source(f"mmlu/{subject}_test.jsonl", _build_question, shots=partial(_load_shots, dev), needs=(dev,))
    about = subject.replace("_", " ")
    preamble = f"The following are multiple choice questions (with answers) about {about}.\n\n"
    return Ranked(f"mmlu_{subject}", (source,), preamble)


TASKS: tuple[Task, ...] = tuple(map(_build_task, SUBJECTS))
