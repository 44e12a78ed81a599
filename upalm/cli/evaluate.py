"""`upalm eval`."""

import json
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal

from etils import epy

from upalm.cli import options
from upalm.files import write_atomically

with epy.lazy_imports():  # once the options are read: they import JAX
    from upalm.checkpoints import folder as checkpoint_folder
    from upalm.data import sources, tokens
    from upalm.distributed import runtime
    from upalm.evals import bootstrap, paper_numbers, savings, suites, text_table
    from upalm.evals import scorer as scorer_module
    from upalm.evals.infilling import held_out
    from upalm.evals.infilling import suite as infilling_suite
    from upalm.training import progress

INFILLING = "infilling"
HELD_OUT = "held_out"

_OTHERS = (INFILLING, HELD_OUT)
"""Suites that have measures of their own."""

_OF_PROMPTS = ("tasks", "attention", "infill")
_OF_SUITES = (*_OF_PROMPTS, "out", "limit", "mode")
_OF_HELD_OUT = ("seq_len", "n_rows", "n_decoded", "include", "skip_undecodable", "json")
"""Fields of `Eval` that only some suites have a use for."""


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a checkpoint on held-out text or benchmark suites.

    Suites: english26, cot, bbh, mmlu, mgsm, tydiqa, xquad, bbes, infilling, synthetic, others, held_out, or a Python
    file with a suite of your own (docs/evals.md). A suite runs the tasks whose files are in the data folder and lists
    the others. The same command resumes an interrupted evaluation.
    """

    checkpoint: options.Checkpoint
    """Folder of a run, of one of its checkpoints (RUN/steps/500), or of weights."""
    data: options.Data
    """For held_out: text as for `upalm data build`, of which the held-out tenth is measured. For suites: the folder
    with the benchmark files."""
    suite: str = HELD_OUT
    """Name of a suite, a Python file that defines SUITE or TASKS, or held_out."""
    tasks: tuple[str, ...] = ()
    """Suites: run these tasks only."""
    out: Path = Path("runs/eval")
    """Suites: folder for results.json and a record of every question."""
    limit: int | None = None
    """Suites: use the first questions of each task only."""
    mode: options.Mode = "auto"
    """Suites: mode token. `auto` is none as in the paper, and nlg for infilling."""
    attention: options.Attention = "prefix"
    """Suites: mask of the prompt, bidirectional (prefix) or causal, as a causal base was trained."""
    infill: bool = False
    """Suites: ask for the answer as a span after `<extra_id_0>`."""
    seq_len: int = 2048
    """held_out: longest prompt with its answer, and longest text, in tokens; never more than the model's rows."""
    n_rows: int = 160
    """held_out: gaps of each kind."""
    n_decoded: int = 96
    """held_out: single-line gaps that are also decoded."""
    include: tuple[str, ...] = ()
    """held_out: patterns such as '*.py': exactly the matching files of a folder are read."""
    skip_undecodable: bool = False
    """held_out: leave out text that is not UTF-8, or that the tokenizer cannot spell, and list it, instead of stopping:
    rows of JSON and tables alone, files of plain text whole."""
    json: Path | None = None
    """held_out: file for the numbers."""

    def __call__(self) -> None:
        self._check_options()
        if self.suite == HELD_OUT:
            self._measure_held_out()
        else:
            self._run_suite()

    def _check_options(self) -> None:
        """Refuse options that would be ignored, and numbers below 1."""
        ignored = {HELD_OUT: _OF_SUITES, INFILLING: _OF_PROMPTS + _OF_HELD_OUT}.get(self.suite, _OF_HELD_OUT)
        changed = [f.name for f in fields(self) if f.name in ignored and getattr(self, f.name) != f.default]
        if given := [f"--{name.replace('_', '-')}" for name in changed]:
            raise ValueError(f"suite {self.suite} has no use for {', '.join(given)}: leave it out.")
        at_least_one = {
            "limit": self.limit,
            "seq-len": self.seq_len,
            "n-rows": self.n_rows,
            "n-decoded": self.n_decoded,
        }
        for name, value in at_least_one.items():
            if value is not None and value < 1:
                raise ValueError(f"--{name} is {value}, expected at least 1.")
        options.check_file("--json", self.json)

    def _measure_held_out(self) -> None:
        runtime.enable_compilation_cache()
        model, tokenizer, info = checkpoint_folder.load_model(self.checkpoint)
        text = sources.TextSource(self.data, self.include, self.skip_undecodable, options.TEXT_OPTIONS)
        documents = text.load(partial(tokens.spelling_problem, tokenizer)).validation
        for note in text.notes():
            print(note)
        seq_len = min(self.seq_len, model.config.seq_len)
        lines, words = held_out.cut_gaps(documents, tokenizer, seq_len, self.n_rows, info.inputs_eos)
        rows = {"line": lines, "multi_span": words}
        if shortfall := held_out.describe_shortfall(rows, self.n_rows, self.n_decoded, seq_len):
            print(shortfall)
        measurement = held_out.measure(
            model,
            tokenizer,
            documents,
            lines,
            words,
            seq_len=seq_len,
            n_decoded=self.n_decoded,
            inputs_eos=info.inputs_eos,
        )
        estimates = measurement.estimates()
        if self.json is not None:
            write_atomically(self.json, json.dumps(bootstrap.to_json(estimates), indent=1) + "\n")
        print(_format_metrics(f"{self.checkpoint} on {len(documents)} held-out documents", estimates))
        print(
            f"mode token {measurement.infill_mode} for gaps, {measurement.left_only_format} for continuations: its best"
        )
        if repeats := held_out.describe_repeats(rows):
            print(repeats)

    def _run_suite(self) -> None:
        suite = None if self.suite == INFILLING else suites.find_suite(self.suite, _OTHERS).select(self.tasks)
        name, mode = (INFILLING, "nlg") if suite is None else (suite.name, "none")
        folder, checkpoint, scorer, identity = self._prepare(name, mode if self.mode == "auto" else self.mode)
        data, mode = Path(self.data), scorer.prompt_format.mode
        with progress.Bar(name, 1) as bar:

            def report(task: str, n: int, total: int) -> None:
                bar.set_total(n, total, task)

            if suite is None:
                result = infilling_suite.run(checkpoint, data, folder, mode, scorer.fingerprint, self.limit, report)
            else:
                result = suites.run_suite(scorer, suite, data, folder, limit=self.limit, progress=report)
        suites.save_results(folder / "results.json", identity | result.to_json())
        if isinstance(result, suites.SuiteResult):
            print(_format_suite(result))
        else:
            print("\n\n".join(_format_metrics(name, estimates) for name, estimates in result.estimates.items()))
        for name, reason in result.not_run.items():
            print(f"not run: {name}: {reason}")
        print(f"results: {folder / 'results.json'}, with a record of every task beside it")

    def _prepare(self, name: str, mode: Literal["none", "s2s", "nlu", "nlg"]):
        """Check the folders, then load the model and describe it."""
        if not Path(self.data).is_dir():
            raise ValueError(f"--data {self.data} is no folder: a suite needs the folder with the benchmark files.")
        folder = self.out / name
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as e:
            raise ValueError(f"--out {self.out} cannot be written ({e}): choose another folder.") from e
        runtime.enable_compilation_cache()
        checkpoint = checkpoint_folder.load_model(self.checkpoint)
        model, tokenizer, info = checkpoint
        prompt_format = scorer_module.PromptFormat(self.attention, mode, self.infill, info.inputs_eos)
        scorer = scorer_module.Scorer(model, tokenizer, prompt_format)
        identity = savings.describe_checkpoint(self.checkpoint, model, scorer) | {"limit": self.limit}
        return folder, checkpoint, scorer, identity


def _format_metrics(title: str, estimates: "dict[str, bootstrap.Estimate]") -> str:
    rows = [(name, str(estimate), str(estimate.n)) for name, estimate in estimates.items()]
    return text_table.format_table(("metric", "mean [95% interval]", "rows"), rows, title=title)


def _format_suite(result: "suites.SuiteResult") -> str:
    """Return scores beside the paper's, in percent, and what did not fit the model's rows."""
    rows, notes = [], []
    for name, r in result.results.items():
        paper, task = paper_numbers.TASKS.get(name), next(t for t in result.suite.tasks if t.name == name)
        n = f"{r.score.n}" + (f" of {task.n_official}" if task.n_official not in (None, r.score.n) else "")
        score = f"{r.score.mean:.1%} [{r.score.low:.1%}, {r.score.high:.1%}]"
        rows.append((name, score, f"{r.chance:.1%}", n, *_format_printed(paper)))
        counts = {f"with fewer than {r.n_shots} exemplars": r.n_dropped, "cut": r.n_cut}
        if changed := " and ".join(f"{k} {what}" for what, k in counts.items() if k):
            notes.append(f"{name}: {changed} of {r.score.n}, to fit")
    paper = paper_numbers.SUITES.get(result.suite.name)  # means of scores that are not normalised
    averages = {"": result.raw_average(), ", normalised": result.average() if result.suite.normalised else None}
    for what, average in averages.items():
        if average is not None:
            name = "average" if average.is_whole else f"mean of {average.n_tasks} of {result.suite.n_tasks} tasks"
            printed = _format_printed(paper if average.is_whole and not what else None)
            rows.append((name + what, f"{average.mean:.1%} ± {average.se:.1%}", "", "", *printed))
    header: tuple[Any, ...] = ("task", "score [95% interval]", "chance", "questions", "PaLM", "U-PaLM")
    if not any(cell for row in rows for cell in row[4:]):
        header, rows = header[:4], [row[:4] for row in rows]
    table = text_table.format_table(header, rows, title=f"{result.suite.name}: {result.suite.description}")
    return "\n".join([table, *notes])


def _format_printed(printed: "paper_numbers.Printed | None") -> tuple[str, str]:
    return (f"{printed.palm:.1f}", f"{printed.u_palm:.1f}") if printed is not None else ("", "")
