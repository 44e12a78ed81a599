"""See UL2R work in five minutes: fork a tiny PaLM into UL2R and into more causal training, and compare.

Paper:    U-PaLM (arXiv:2210.11399): section 2 (UL2R), section 4 (infilling).
Command:  upalm run quickstart
Hardware: 2 CPU cores, under 5 minutes.
Expected: the table of docs/results.md, within its intervals.
"""

import json
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated

import jax.numpy as jnp
import numpy as np
import tyro

import upalm
from upalm import ul2r
from upalm.checkpoints.folder import load_model
from upalm.checkpoints.lineage import stages
from upalm.data import sources
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokens import encode
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals import report
from upalm.evals.bootstrap import Estimate, ratio
from upalm.evals.infilling import gaps
from upalm.evals.infilling.held_out import Measurement, cut_gaps, measure
from upalm.model.attention import key_range
from upalm.training import config as train
from upalm.training import metrics, progress, recipes
from upalm.training.launch import run
from upalm.training.loop import fit
from upalm.training.optim import Adafactor, Schedule
from upalm.training.resume import check_folder

SHIPPED = Path(upalm.__file__).parent / "assets" / "palm_tiny"
FORKS = ("causal", "ul2r")
SHOWN = ("causal_bits_per_byte", "infill_bits_per_byte", "infill_gain", "suffix_use", "format_ok")


WHAT = """
<p>A causal PaLM of {n_params} parameters (<b>base</b>) was trained further in two ways with equal extra compute
({share}): with plain next-token prediction (<b>causal</b>, the control) and with U-PaLM's mixture of denoisers
(<b>ul2r</b>). All three are measured on files that none of them has seen.</p>
<p>{verdict}</p>
"""

LIMITS = """
<p>Shown here: within a small share of its pretraining compute, a model that never saw a gap learns the infilling form
and to use the text on both sides; and how that compares with spending the same compute on more of the same.</p>
<p>Not shown here: better few-shot scores, or the paper's 2x saving. The paper has no result below 8B parameters. At
equal compute UL2R costs a tiny model some left-to-right quality (causal bits/byte), and exact whole lines are
rare.</p>
<p>Intervals: 95%, bootstrap over rows (1000 draws); they do not include the spread over training seeds. Each model is
taken at its best on these rows ({modes}). <code>infill_gain</code> is left_only minus infill: above 0, the right
context helps more than the infilling form costs. <code>suffix_use</code>: bits/byte lost when the text after the gap
is exchanged for another row's. <code>format_ok</code>: unconstrained decoding gives the gap one span and ends.</p>
"""


@dataclass(frozen=True)
class Quickstart:
    """The main job."""

    out: Path = Path("runs/quickstart")
    """Folder for checkpoints, figures, report.html and results.json. Run again to resume."""
    data: str = sources.STDLIB
    """`stdlib` (Python's own source files), a .txt or .jsonl file, or a folder of them."""
    checkpoint: Annotated[Path, tyro.conf.arg(aliases=("-c",))] = SHIPPED
    """Checkpoint to fork; the shipped one was made by `upalm run palm_tiny tiny`."""
    from_scratch: bool = False
    """Pretrain the base first, on `data` (about an hour on 2 cores)."""
    skip_undecodable: bool = False
    """Leave out files that are not UTF-8, and count them, instead of stopping."""
    mixture: str = "ul2r_eos"
    """Mixture of the UL2R fork: ul2r_eos, U-PaLM's with EOS after the inputs, or ul2r without."""
    n_steps: int = 280
    """Steps of each fork."""
    batch_size: int = 8
    """Rows of 256 tokens in a batch."""
    optimizer: Adafactor = field(default_factory=lambda: Adafactor(Schedule("cosine", 1e-2, 1e-4), decay=False))
    """Of both forks."""
    n_rows: int = 160
    """Held-out gaps of each kind."""
    n_decoded: int = 96
    """Of them, how many single-line gaps are also decoded."""
    seed: int = 0
    """Decides data order and noise."""

    def fork(self, name: str, base: Path, seq_len: int) -> train.TrainConfig:
        """The run of a fork: the same but for the mixture."""
        mixture = "causal" if name == "causal" else self.mixture
        return train.TrainConfig(
            out=self.out / name,
            start=train.Continue(base),
            data=DataConfig(
                source=self.data,
                mixture=mixture,
                seq_len=seq_len,
                batch_size=self.batch_size,
                joint_budget=True,
                skip_undecodable=self.skip_undecodable,
            ),
            optimizer=self.optimizer,
            n_steps=self.n_steps,
            seed=self.seed,
            log_every=5,
            save_every=100,
            eval_every=self.n_steps,
        )


def main(args: Quickstart) -> None:
    started = time.monotonic()
    enable_compilation_cache()
    base_folder = pretrain(args) if args.from_scratch else args.checkpoint
    base, tokenizer, _ = load_model(base_folder)
    forks = {name: args.fork(name, base_folder, base.config.seq_len) for name in FORKS}
    for config in forks.values():  # before anything is trained
        check_folder(config)
    corpus = sources.load(args.data, skip_undecodable=args.skip_undecodable)
    # rows must fit the longest form of a prompt, whichever model is asked
    lines, words = cut_gaps(corpus.validation, tokenizer, base.config.seq_len, args.n_rows, inputs_eos=True)
    if corpus.skipped:
        print(f"skipped {len(corpus.skipped)} files that are not UTF-8: {', '.join(corpus.skipped)}")
    tokens, held_out = (encode(tokenizer, documents) for documents in (corpus.train, corpus.validation))
    models = {"base": base}
    for name, config in forks.items():
        print(f"\n{name}: {args.n_steps} steps of {args.batch_size} x {config.data.seq_len} tokens", flush=True)
        models[name] = fit(config, base, tokenizer, tokens, held_out, title=name)

    rows: dict[str, Measurement] = {}
    with progress.Bar("evaluate", len(models)) as bar:
        for i, (name, model) in enumerate(models.items()):
            trained_on = ul2r.mixture(forks[name].data.mixture) if name in forks else ()
            eos = any(d.inputs_eos for d in trained_on)
            rows[name] = measure(
                model, tokenizer, corpus.validation, lines, words, n_decoded=args.n_decoded, inputs_eos=eos
            )
            bar.update(i + 1)
    results = {
        "extra_compute": extra_compute(base_folder, forks["ul2r"]),
        "models": {name: {k: v._asdict() for k, v in r.estimates().items()} for name, r in rows.items()},
        "differences": {k: v._asdict() for k, v in differences(rows).items()},
    }
    (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    write_report(args, forks, models, tokenizer, tokens, lines, rows, results)
    print_summary(results, rows, lines)
    print(f"\nreport: {args.out / 'report.html'}   ({time.monotonic() - started:.0f} s)")
    print(f'try: upalm infill --checkpoint {args.out / "ul2r"} --text "def add(a, b):<extra_id_0>return c"')


def pretrain(args: Quickstart) -> Path:
    config = recipes.config("palm_tiny", "tiny")
    data = replace(config.data, source=args.data, skip_undecodable=args.skip_undecodable)
    config = replace(config, out=args.out / "base", data=data, seed=args.seed)
    print(f"pretraining {config.n_steps} steps: about an hour on 2 CPU cores; Ctrl-C and run again to resume")
    return run(config)


# --- Measurements ---------------------------------------------------------------------------------


def differences(rows: dict[str, Measurement]) -> dict[str, Estimate]:
    """Paired: the same gaps, UL2R minus the equal-compute control. Below 0, UL2R is better (bits)."""
    ours, control = rows["ul2r"], rows["causal"]
    return {
        "infill_bits_per_byte": ratio(ours.infill.bits - control.infill.bits, ours.infill.n_bytes),
        "multi_span_bits_per_byte": ratio(ours.multi.bits - control.multi.bits, ours.multi.n_bytes),
        "causal_bits_per_byte": ratio(ours.causal.bits - control.causal.bits, ours.causal.n_bytes),
    }


def extra_compute(base_folder: Path, fork: train.TrainConfig) -> float | None:
    """Tokens (so FLOPs) of a fork over those that made the base; None if the base does not say how many."""
    made_by = stages(base_folder)
    if made_by is None:
        return None
    return fork.n_steps * fork.data.batch_size * fork.data.seq_len / sum(stage.n_tokens for stage in made_by)


# --- What the user sees ---------------------------------------------------------------------------


def print_summary(results: dict, rows: dict[str, Measurement], lines: list[gaps.Gap]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"\nThe same extra compute ({share(results)}), spent in two ways")
    table.add_column("held-out Python source")
    for name in rows:
        table.add_column(name, justify="right")
    for metric in next(iter(results["models"].values())):
        table.add_row(metric, *(str(Estimate(**results["models"][name][metric])) for name in rows))
    console = Console(highlight=False)
    console.print(table)
    console.print(verdict(results))
    for i in examples(rows, lines):
        before, after = tail(lines[i].parts[0]), head(lines[i].parts[1])
        console.print(f"\n{before}<extra_id_0>{after}", markup=False, style="dim")
        console.print(f"   was    {lines[i].spans[0].strip()}", markup=False)
        for name, r in rows.items():
            console.print(f"   {name:6} {r.prediction(i)}", markup=False)


def share(results: dict) -> str:
    known = results["extra_compute"]
    return f"{known:.1%} of the base's own" if known is not None else "the base does not say what share of its own"


def verdict(results: dict) -> str:
    d = Estimate(**results["differences"]["infill_bits_per_byte"])
    gain = Estimate(**results["models"]["ul2r"]["infill_gain"])
    better = "fewer" if d.mean < 0 else "more"
    sure = "significant" if d.high < 0 or d.low > 0 else "not significant"
    said = (
        f"UL2R fills held-out gaps with {abs(d.mean):.3f} {better} bits/byte than the control "
        f"({sure}: 95% interval of the difference {d.low:+.3f} to {d.high:+.3f}). "
    )
    if gain.low > 0:
        return said + (
            f"Against its own best continuation from the left alone, the text after the gap gains it {gain} bits/byte."
        )
    if gain.high < 0:
        return said + (
            f"It is still {-gain.mean:.3f} bits/byte behind its own best continuation from the left alone: at this "
            "size and budget it uses the text after the gap, not yet enough to beat plain continuation."
        )
    return said + f"Its gain over its own best continuation from the left alone is not significant: {gain}."


def examples(rows: dict[str, Measurement], lines: list[gaps.Gap], n: int = 4) -> list[int]:
    """The first gaps, good or bad: not chosen by what the models wrote."""
    return list(range(min(n, len(rows["ul2r"].filled.spans), len(lines))))


def tail(part: str) -> str:
    return "\n".join(part.split("\n")[-4:])


def head(part: str) -> str:
    return "\n".join(part.split("\n")[:3])


def write_report(args: Quickstart, forks, models, tokenizer, tokens, lines, rows, results) -> None:
    logs = {name: metrics.read(config.out / "metrics.jsonl") for name, config in forks.items()}
    drawn = replace(forks["ul2r"].data, batch_size=24, joint_budget=False)  # the paper's budgets: packed rows
    batch = Loader(tokens, drawn, tokenizer.symbols, seed=args.seed).batch(0)
    visible = np.asarray(key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(drawn.seq_len))
    figures = [args.out / name for name in ("metrics.png", "masks.png", "loss.png")]
    report.save_metrics(figures[0], results["models"], SHOWN)
    report.save_masks(figures[1], batch, visible, [d.name for d in ul2r.mixture(args.mixture)])
    report.save_loss_curves(figures[2], logs)
    shown = "".join(
        report.infill_block(
            *(tail(lines[i].parts[0]), lines[i].spans[0], head(lines[i].parts[1])),
            {name: r.prediction(i) for name, r in rows.items()},
        )
        for i in examples(rows, lines, 8)
    )
    base = models["base"].config
    modes = "; ".join(
        f"{name} infills with mode {r.infill_mode}, continues {r.left_only_form}" for name, r in rows.items()
    )
    what = WHAT.format(n_params=f"{base.n_params / 1e6:.1f}M", share=share(results), verdict=verdict(results))
    limits = LIMITS.format(modes=modes)
    sections = [("What was done", what), ("Measured", report.table(results["models"])), ("What it means", limits)]
    sections.append(("The first eight gaps (grey: what was there)", shown))
    report.save_html(args.out / "report.html", "UL2R on a laptop", sections, figures)


if __name__ == "__main__":
    main(recipes.parse(Quickstart, __doc__))
