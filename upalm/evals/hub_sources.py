"""Sources of benchmark files on the Hugging Face hub, and the conversion of their columns to the suites'.

A conversion takes a row of a split and returns a row of our file (docs/evals.md has their columns).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

from upalm.evals.infilling.humaneval import FILES
from upalm.evals.tasks.mmlu import SUBJECTS

Row = Mapping[str, Any]
"""Row of a split on the hub, by column."""

Convert = Callable[[Row], dict[str, Any]]
"""Conversion of such a row into one of our file."""


class HubSource(NamedTuple):
    """A split of a data set on the hub."""

    repo: str
    """Data set, as owner/name."""
    split: str
    """CONFIG/SPLIT on the Parquet branch."""
    convert: Convert
    """Makes a row of our file."""
    gather: Callable[[Iterable[Row]], Iterable[Row]] = iter
    """Joins rows of the hub first, where several make one of ours."""


def _copy(*columns: str) -> Convert:
    """Make a conversion that keeps some columns."""
    return lambda row: {name: row[name] for name in columns}


# --- Questions with choices -----------------------------------------------------------------------


def _query(query: str, choices: Iterable[str], gold: int) -> dict[str, Any]:
    return {"query": query, "choices": list(choices), "gold": gold}


def _boolq(row: Row) -> dict[str, Any]:
    query = f"Passage: {row['passage']}\nQuestion: {row['question']}?\n"
    return _query(query, ("no", "yes"), int(row["answer"]))


def _piqa(row: Row) -> dict[str, Any]:
    return _query(f"Question: {row['goal']}\n", (row["sol1"], row["sol2"]), row["label"])


def _labelled(question: str, prefix: str, row: Row) -> dict[str, Any]:
    """Convert ARC's and OpenBookQA's columns: choices with labels, of which the answer is one."""
    labels = list(row["choices"]["label"])
    return _query(prefix + row[question], row["choices"]["text"], labels.index(row["answerKey"]))


def _winograd(row: Row) -> dict[str, Any]:
    place, text = row["pronoun_loc"], row["text"]
    before, after = text[:place], text[place + len(row["pronoun"]) :]
    contexts = [before + (name if before else name[:1].upper() + name[1:]) for name in row["options"]]
    return {"context_options": contexts, "continuation": after.strip(), "gold": row["label"]}


def _winogrande(row: Row) -> dict[str, Any]:
    before, _, after = row["sentence"].partition("_")
    contexts = [before + row[name] for name in ("option1", "option2")]
    return {"context_options": contexts, "continuation": after.strip(), "gold": int(row["answer"]) - 1}


def _hellaswag(row: Row) -> dict[str, Any]:
    columns = {name: row[name] for name in ("activity_label", "ctx_a", "ctx_b")}
    return columns | {"endings": list(row["endings"]), "label": int(row["label"])}


# --- SuperGLUE and ANLI ---------------------------------------------------------------------------


def _with_label(columns: tuple[str, ...], labels: tuple[Any, ...], row: Row) -> dict[str, Any]:
    """Copy columns, and write the label's name for its number."""
    return {name: row[name] for name in columns} | {"label": labels[row["label"]]}


def _anli(row: Row) -> dict[str, Any]:
    return {"context": row["premise"], "hypothesis": row["hypothesis"], "label": "enc"[row["label"]]}


def _wsc(row: Row) -> dict[str, Any]:
    spans = {name: row[name] for name in ("span1_text", "span2_text")}
    return {"text": row["text"], "target": spans, "label": bool(row["label"])}


def _gather_multirc(rows: Iterable[Row]) -> Iterator[dict[str, Any]]:
    """Gather the hub's rows, one per answer, by passage and question."""
    passages: dict[int, dict[str, Any]] = {}
    for row in rows:
        place = row["idx"]
        passage = passages.setdefault(place["paragraph"], {"text": row["paragraph"], "questions": {}})
        question = passage["questions"].setdefault(place["question"], {"question": row["question"], "answers": []})
        question["answers"].append({"text": row["answer"], "label": row["label"]})
    for passage in passages.values():
        yield {"passage": {"text": passage["text"], "questions": list(passage["questions"].values())}}


def _record(row: Row) -> dict[str, Any]:
    """Convert ReCoRD's columns; ends of entities are exclusive on the hub, and inclusive in the published file."""
    places = zip(row["entity_spans"]["start"], row["entity_spans"]["end"], strict=True)
    entities = [{"start": start, "end": end - 1} for start, end in places]
    answers = [{"text": text} for text in row["answers"]]
    return {
        "passage": {"text": row["passage"], "entities": entities},
        "qas": [{"query": row["query"], "answers": answers}],
    }


# --- Generated answers ----------------------------------------------------------------------------


def _trivia(row: Row) -> dict[str, Any]:
    answer = row["answer"]
    context = f"Question: {row['question']}\nAnswer:"
    return {"context": context, "answer": answer["value"], "aliases": list(answer["aliases"])}


def _squad(row: Row) -> dict[str, Any]:
    columns = {name: row[name] for name in ("id", "context", "question")} | {"title": row.get("title") or ""}
    return columns | {"answers": {"text": list(row["answers"]["text"])}}


def _lambada(row: Row) -> dict[str, Any]:
    context, _, word = row["text"].rstrip().rpartition(" ")
    return {"text": row["text"], "context": context, "continuation": word}


def _commonsense(row: Row) -> dict[str, Any]:
    pairs = zip(row["choices"]["label"], row["choices"]["text"], strict=True)
    choices = [{"label": label, "text": text} for label, text in pairs]
    return {"answerKey": row["answerKey"], "question": {"stem": row["question"], "choices": choices}}


def _mgsm_exemplar(row: Row) -> dict[str, Any]:
    return {"question": row["question"], "cot_answer": row["answer"], "answer_number": row["answer_number"]}


# --- Files ----------------------------------------------------------------------------------------

_GLUE = "aps/super_glue"
_NLI = ("entailment", "contradiction", "neutral")
_RACE = _copy("article", "question", "answer", "options")
_ARC = partial(_labelled, "question", "Question: ")

SOURCES: dict[str, HubSource] = {
    "nlp/boolq.jsonl": HubSource("google/boolq", "default/validation", _boolq),
    "nlp/piqa.jsonl": HubSource("ybisk/piqa", "plain_text/validation", _piqa),
    "nlp/arc_easy.jsonl": HubSource("allenai/ai2_arc", "ARC-Easy/test", _ARC),
    "nlp/arc_challenge.jsonl": HubSource("allenai/ai2_arc", "ARC-Challenge/test", _ARC),
    "nlp/openbook_qa.jsonl": HubSource("allenai/openbookqa", "main/test", partial(_labelled, "question_stem", "")),
    "nlp/winograd_wsc.jsonl": HubSource("ErnestSDavis/winograd_wsc", "wsc273/test", _winograd),
    "nlp/winogrande.jsonl": HubSource("allenai/winogrande", "winogrande_xl/validation", _winogrande),
    "nlp/hellaswag.jsonl": HubSource("Rowan/hellaswag", "default/validation", _hellaswag),
    "superglue/COPA/val.jsonl": HubSource(
        _GLUE, "copa/validation", _copy("premise", "question", "choice1", "choice2", "label")
    ),
    "superglue/RTE/val.jsonl": HubSource(
        _GLUE, "rte/validation", partial(_with_label, ("premise", "hypothesis"), ("entailment", "not_entailment"))
    ),
    "superglue/CB/val.jsonl": HubSource(_GLUE, "cb/validation", partial(_with_label, ("premise", "hypothesis"), _NLI)),
    "superglue/WiC/val.jsonl": HubSource(
        _GLUE, "wic/validation", partial(_with_label, ("word", "sentence1", "sentence2"), (False, True))
    ),
    "superglue/WSC/val.jsonl": HubSource(_GLUE, "wsc.fixed/validation", _wsc),
    "superglue/MultiRC/val.jsonl": HubSource(_GLUE, "multirc/validation", dict, _gather_multirc),
    "superglue/ReCoRD/val.jsonl": HubSource(_GLUE, "record/validation", _record),
    **{f"anli/R{i}/dev.jsonl": HubSource("facebook/anli", f"plain_text/dev_r{i}", _anli) for i in (1, 2, 3)},
    "race/middle.jsonl": HubSource("ehovy/race", "middle/test", _RACE),
    "race/high.jsonl": HubSource("ehovy/race", "high/test", _RACE),
    "nlp/triviaqa.jsonl": HubSource("mandarjoshi/trivia_qa", "unfiltered.nocontext/validation", _trivia),
    "nlp/nq_open.jsonl": HubSource(
        "google-research-datasets/nq_open", "nq_open/validation", _copy("question", "answer")
    ),
    "nlp/webquestions.jsonl": HubSource("stanfordnlp/web_questions", "default/test", _copy("question", "answers")),
    "nlp/squad_v2.jsonl": HubSource("rajpurkar/squad_v2", "squad_v2/validation", _squad),
    "nlp/lambada_openai.jsonl": HubSource("EleutherAI/lambada_openai", "default/test", _lambada),
    "gsm8k/test.jsonl": HubSource("openai/gsm8k", "main/test", _copy("question", "answer")),
    "nlp/commonsense_qa.jsonl": HubSource("tau/commonsense_qa", "default/validation", _commonsense),
    **{
        f"mmlu/{subject}_{split}.jsonl": HubSource(
            "cais/mmlu", f"{subject}/{split}", _copy("question", "choices", "answer")
        )
        for subject in SUBJECTS
        for split in ("test", "dev")
    },
    **{
        file: HubSource("juletxara/mgsm", f"{language}/{split}", convert)
        for language in ("en", "es", "fr", "de", "ru", "zh", "ja", "th", "sw", "bn", "te")
        for file, split, convert in (
            (f"mgsm/{language}.jsonl", "test", _copy("question", "answer_number")),
            (f"mgsm/{language}_exemplars.json", "train", _mgsm_exemplar),
        )
    },
    "tydiqa/goldp_dev.jsonl": HubSource("google-research-datasets/tydiqa", "secondary_task/validation", _squad),
    **{
        f"xquad/{language}.jsonl": HubSource("google/xquad", f"xquad.{language}/validation", _squad)
        for language in ("en", "ar", "de", "el", "es", "hi", "ru", "th", "tr", "vi", "zh", "ro")
    },
    **{
        f"humaneval_infilling/{file}": HubSource(
            "loubnabnl/humaneval_infilling",
            f"{file.removesuffix('.jsonl.gz')}/test",
            _copy("task_id", "prompt", "suffix", "canonical_solution"),
        )
        for file in FILES.values()
    },
}
"""Hub sources by the file that they become, below the data folder."""

_BIG_BENCH = "get task.json from github.com/google/BIG-bench, folder bigbench/benchmark_tasks"
_BBH = "get it from github.com/suzgunmirac/BIG-Bench-Hard"

ELSEWHERE: dict[str, str] = {
    "storycloze/": "it is given out after a form is signed: cs.rochester.edu/nlp/rocstories",
    "bigbench/": _BIG_BENCH,
    "bbh/": _BBH,
    "gsm8k/cot_8shot.json": "the exemplars are in appendix G of arXiv:2201.11903",
    "nlp/commonsense_qa_cot_train_300.jsonl": "Flan's pool of rationales is in github.com/google-research/FLAN",
    "nlp/strategyqa_cot_train_300.jsonl": "Flan's pool of rationales is in github.com/google-research/FLAN",
    "nlp/svamp.jsonl": "get it from github.com/arkilpatel/SVAMP",
    "nlp/aqua.jsonl": "get it from github.com/google-deepmind/AQuA",
    "synthetic/": "`upalm.evals.tasks.synthetic.write(folder)` makes it",
}
"""Advice for files that are not on the hub, by the beginning of their path."""
