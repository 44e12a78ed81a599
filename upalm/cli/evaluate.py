"""`upalm eval`."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from rich.table import Table

from upalm.checkpoints.folder import load_model
from upalm.cli import options
from upalm.data import sources
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals import paper_numbers, suites
from upalm.evals.bootstrap import Estimate
from upalm.evals.infilling import suite as infilling_suite
from upalm.evals.infilling.held_out import cut_gaps, measure
from upalm.evals.savings import about
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.suites import SuiteResult, run_suite, save
from upalm.inference.decoding import Attention
from upalm.training import progress

_HELD_OUT = "held_out"


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure a checkpoint on held-out text or benchmark suites.

    Suites: english26, cot, bbh, mmlu, mgsm, tydiqa, xquad, bbes, infilling, synthetic, others (docs/evals.md), and
    held_out. A suite runs the tasks whose files are in the data folder and names the others; run again, it goes on
    where it was.
    """

    checkpoint: options.Checkpoint
    """Folder of a run, of one of its checkpoints (RUN/steps/500), or of weights."""
    data: options.Data
    """Held-out: text, as for `upalm data build`; the tenth of its documents that training leaves out is measured on.
    Suites: the folder with the benchmarks' files."""
    suite: str = _HELD_OUT
    """What to measure: a suite, or held_out."""
    tasks: tuple[str, ...] = ()
    """Of a suite, only these."""
    out: Path = Path("runs/eval")
    """Of a suite: folder for results.json, and for a record of every question."""
    limit: int | None = None
    """Of a suite: only the first so many questions of each task."""
    mode: Literal["none", "s2s", "nlu", "nlg"] | None = None
    """Mode token; the paper's default is none, for infilling it is nlg here."""
    attention: Attention = "prefix"
    """Whether a prompt sees all of itself, or, as a causal base was trained, what came before."""
    infill: bool = False
    """Ask for the answer as a span after `<extra_id_0>`."""
    n_rows: int = 160
    """Held-out: gaps of each kind."""
    n_decoded: int = 96
    """Held-out: of them, how many single-line gaps are also decoded."""
    json: Path | None = None
    """Held-out: file to write the numbers to."""

    def __call__(self) -> None:
        self._refuse_what_would_be_ignored()
        enable_compilation_cache()
        if self.suite == _HELD_OUT:
            self._held_out()
        else:
            self._suite()

    def _refuse_what_would_be_ignored(self) -> None:
        of_prompts = {"attention": self.attention != "prefix", "infill": self.infill, "tasks": bool(self.tasks)}
        of_suites = of_prompts | {"limit": self.limit is not None, "mode": self.mode is not None}
        unused = {_HELD_OUT: of_suites, infilling_suite.NAME: of_prompts}.get(self.suite, {})
        if given := [f"--{name}" for name, is_given in unused.items() if is_given]:
            raise ValueError(f"suite {self.suite} has no use for {', '.join(given)}: leave it out.")
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"--limit is {self.limit}, expected at least 1.")

    def _held_out(self) -> None:
        model, tokenizer, info = load_model(self.checkpoint)
        documents = sources.load(self.data).validation
        lines, words = cut_gaps(documents, tokenizer, model.config.seq_len, self.n_rows, info.inputs_eos)
        found = measure(model, tokenizer, documents, lines, words, n_decoded=self.n_decoded, inputs_eos=info.inputs_eos)
        console = progress.console()
        console.print(_metrics_table(f"{self.checkpoint} on {len(documents)} held-out documents", found.estimates()))
        console.print(f"infills with mode {found.infill_mode}, continues {found.left_only_form}: what suits it most")
        if self.json is not None:
            numbers = {name: estimate._asdict() for name, estimate in found.estimates().items()}
            self.json.write_text(json.dumps(numbers, indent=1) + "\n")

    def _suite(self) -> None:
        infills = self.suite == infilling_suite.NAME
        suite = None if infills else suites.find(self.suite).only(self.tasks)
        if not Path(self.data).is_dir():
            raise ValueError(f"--data {self.data} is no folder: a suite wants the folder of the benchmarks' files.")
        checkpoint = load_model(self.checkpoint)
        model, tokenizer, info = checkpoint
        form = PromptFormat(self.attention, self.mode or ("nlg" if infills else "none"), self.infill, info.inputs_eos)
        answerer, folder, console = Scorer(model, tokenizer, form), self.out / self.suite, progress.console()
        with progress.Bar(self.suite, 1) as bar:

            def say(name: str, n: int, total: int) -> None:
                bar.set_total(n, total, name)

            made = about(self.checkpoint, model, tokenizer, answerer)
            if suite is None:
                found = infilling_suite.run(
                    checkpoint, Path(self.data), folder, form.mode, answerer.fingerprint, self.limit, say
                )
                shown = [_metrics_table(name, estimates) for name, estimates in found.estimates.items()]
                results, not_run = found.to_json(), found.not_run
            else:
                whole = run_suite(answerer, suite, Path(self.data), folder, limit=self.limit, say=say)
                shown, results, not_run = [_suite_table(whole)], whole.to_json(), whole.not_run
        save(folder / "results.json", made | {"limit": self.limit, **results})
        for table in shown:
            console.print(table)
        for name, reason in not_run.items():
            console.print(f"not run: {name}: {reason}", style="yellow", markup=False)
        beside = "" if suite is None else ", a record of every question beside it"
        console.print(f"results: {folder / 'results.json'}{beside}")


def _metrics_table(title: str, estimates: dict[str, Estimate]) -> Table:
    table = Table(title=title)
    for name in ("metric", "mean [95% interval]", "rows"):
        table.add_column(name)
    for name, estimate in estimates.items():
        table.add_row(name, str(estimate), str(estimate.n))
    return table


def _suite_table(found: SuiteResult) -> Table:
    """Ours beside the paper's, in percent."""
    table = Table(title=f"{found.suite.name}: {found.suite.what}")
    for name in ("task", "metric", "score [95% interval]", "chance", "questions", "shots", "lost", "PaLM", "U-PaLM"):
        table.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for task in found.suite.tasks:
        if (r := found.results.get(task.name)) is None:
            continue
        paper = paper_numbers.TASKS.get(task.name)
        n = f"{r.score.n}" + (f" of {task.n_official}" if task.n_official not in (None, r.score.n) else "")
        lost = [f"{k} {what}" for k, what in ((r.n_dropped, "with fewer"), (r.n_cut, "cut")) if k]
        table.add_row(
            *(task.name, next(iter(r.estimates))),
            f"{r.score.mean:.1%} [{r.score.low:.1%}, {r.score.high:.1%}]",
            *(f"{r.chance:.1%}", n, str(r.n_shots), ", ".join(lost)),
            *((f"{paper.palm:.1f}", f"{paper.u_palm:.1f}") if paper is not None else ("", "")),
        )
    average, paper = found.average(), paper_numbers.SUITES.get(found.suite.name)
    if average is not None:
        name = "average" if average.is_whole else f"of {average.n_tasks} of {found.suite.n_tasks} tasks"
        if found.suite.normalised:
            name += ", normalised"
        shown = (f"{paper.palm:.1f}", f"{paper.u_palm:.1f}") if paper is not None and average.is_whole else ("", "")
        table.add_section()
        table.add_row(name, "", f"{average.mean:.1%} ± {average.se:.1%}", "", "", "", "", *shown)
    return table
