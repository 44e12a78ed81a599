"""Results reported in the U-PaLM paper.

Known inconsistencies: Table 8 exchanges the rows Winograd and Winogrande (PaLM's own paper and Table 4 show it; here
each has its own). Its printed averages are about 2 points below the plain means of its rows, for an unknown reason,
while the gaps agree to 0.3. PaLM's average in Table 1 is 64.3, and 64.2 over its rows. Other papers print other BBH
numbers for PaLM.
"""

from typing import NamedTuple


class Printed(NamedTuple):
    """Score of a task for PaLM 540B and U-PaLM 540B, after 780B tokens of pretraining."""

    palm: float
    u_palm: float


TABLE_8_TOKENS = (182e9, 329e9, 780e9)
"""Pretraining tokens of the PaLM 540B checkpoints in Table 8."""


TABLE_8: dict[str, tuple[float, float, float, float, float, float]] = {
    "triviaqa": (73.4, 74.4, 81.4, 73.3, 75.6, 82.0),
    "natural_questions": (23.2, 25.6, 29.3, 24.4, 28.1, 30.7),
    "webquestions": (21.6, 19.9, 22.6, 21.0, 21.7, 23.4),
    "boolq": (82.4, 85.6, 88.0, 85.8, 88.2, 88.8),
    "record": (91.5, 92.7, 92.9, 91.5, 92.6, 93.0),
    "copa": (92.0, 93.0, 93.0, 94.0, 93.0, 96.0),
    "rte": (68.6, 67.2, 72.9, 73.7, 71.5, 75.5),
    "wic": (50.8, 53.8, 59.1, 52.2, 58.0, 62.2),
    "wsc": (88.1, 86.7, 89.1, 87.0, 88.1, 87.4),
    "cb": (57.1, 48.2, 51.8, 69.6, 71.4, 69.6),
    "multirc": (76.7, 81.1, 83.5, 78.4, 81.7, 83.8),
    "winograd": (89.4, 88.3, 90.1, 87.9, 89.7, 88.3),
    "winogrande": (76.9, 79.6, 81.1, 78.2, 79.3, 82.6),
    "anli_r1": (44.3, 49.4, 48.4, 50.3, 50.6, 55.3),
    "anli_r2": (41.3, 42.7, 44.2, 43.5, 45.2, 47.8),
    "anli_r3": (43.8, 42.8, 45.7, 46.7, 49.3, 57.0),
    "piqa": (81.0, 81.9, 82.3, 80.8, 82.0, 84.1),
    "storycloze": (82.7, 83.9, 84.6, 83.7, 84.2, 87.0),
    "hellaswag": (79.1, 81.8, 83.4, 79.5, 82.3, 84.1),
    "arc_easy": (74.8, 72.8, 76.6, 74.6, 76.3, 85.9),
    "arc_challenge": (48.0, 46.9, 53.0, 48.6, 50.4, 60.3),
    "race_m": (63.6, 67.3, 68.1, 63.2, 67.1, 67.2),
    "race_h": (45.3, 48.5, 49.1, 45.5, 48.5, 51.3),
    "openbookqa": (50.2, 51.2, 53.4, 50.2, 51.2, 53.6),
    "lambada": (75.4, 77.5, 81.8, 74.3, 79.9, 80.0),
    "squad_v2": (70.5, 71.3, 78.7, 71.8, 70.3, 78.2),
}
"""Table 8, 540B: scores of PaLM at the three checkpoints, then of U-PaLM continued from each."""


_TABLE_1 = {
    "navigate": (55.3, 67.0),
    "strategyqa": (73.9, 78.3),
    "crass_ai": (97.7, 100),
    "logical_sequence": (92.3, 86.5),
    "vitaminc_fact_verification": (70.2, 73.9),
    "understanding_fables": (75.7, 78.4),
    "identify_odd_metaphor": (87.2, 87.5),
    "hyperbaton": (54.2, 59.9),
    "causal_judgment": (65.3, 68.4),
    "english_proverbs": (91.2, 87.5),
    "geometric_shapes": (44.0, 49.3),
    "physics_questions": (7.6, 12.5),
    "snarks": (69.1, 86.1),
    "analogical_similarity": (36.5, 37.5),
    "international_phonetic_alphabet_nli": (65.9, 68.0),
    "movie_dialog_same_or_different": (64.8, 68.8),
    "timedial": (78.3, 81.2),
    "question_selection": (54.8, 59.8),
    "logical_fallacy_detection": (80.3, 81.4),
    "unit_interpretation": (47.0, 51.0),
    "language_identification": (36.0, 38.9),
}


TASKS: dict[str, Printed] = {
    **{name: Printed(row[2], row[5]) for name, row in TABLE_8.items()},
    **{f"bbes_{name}": Printed(*row) for name, row in _TABLE_1.items()},
    "gsm8k": Printed(54.9, 58.5),
    "strategyqa": Printed(76.4, 76.6),
    "commonsense_qa": Printed(76.9, 80.1),
}


SUITES: dict[str, Printed] = {
    "english26": Printed(66.5, 69.4),
    "bbes": Printed(64.3, 67.7),
    "bbh": Printed(44.8, 49.6),
    "mmlu": Printed(69.3, 70.7),
    "mgsm": Printed(45.9, 49.9),
    "tydiqa": Printed(52.9, 54.6),
}
"""Averages of the suites as printed."""
