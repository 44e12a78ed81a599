"""See UL2R work within minutes: fork a tiny PaLM into UL2R and into more causal training, and compare.

Paper:    U-PaLM (arXiv:2210.11399): section 2 (UL2R), section 4 (infilling).
Command:  upalm run quickstart
Hardware: 2 CPU cores: 3 minutes with Zen 5, 6 with Zen 4, 10 with Zen 3.
Expected: the table of docs/results.md, within its intervals.
"""

import json
import textwrap
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax.numpy as jnp
import numpy as np
import tyro

import upalm
from upalm import ul2r
from upalm.checkpoints.folder import load_model, open_checkpoint
from upalm.checkpoints.lineage import stages
from upalm.data import sources
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.readers import Document
from upalm.data.tokenizer import Tokenizer
from upalm.data.tokens import encode, spelling_problem
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals import report, text_table
from upalm.evals.bootstrap import Estimate
from upalm.evals.infilling import gaps
from upalm.evals.infilling.held_out import (
    KINDS,
    Measurement,
    compare,
    cut_gaps,
    cut_kinds,
    describe_repeats,
    describe_shortfall,
    measure,
)
from upalm.evals.infilling.scores import decode_rows
from upalm.files import write_atomically
from upalm.model.attention import key_range
from upalm.model.palm import Decoder
from upalm.training import config as train
from upalm.training import metrics, progress, recipes
from upalm.training.launch import prepare
from upalm.training.loop import fit
from upalm.training.optim import Adafactor, Schedule
from upalm.training.resume import LazyModel, check_folder

SHIPPED = upalm.PALM_TINY
FORKS = ("causal", "ul2r")
LABELS = {
    "infill_bits_per_byte": "a missing line",
    "new_name_bits_per_byte": "a new word",
    "few_words_bits_per_byte": "1 to 4 missing words",
    "multi_span_bits_per_byte": "three gaps at once",
    "causal_bits_per_byte": "left to right",
}
GAINS = {
    "new_name_gain": "a new word (one that the text after the gap has again)",
    "few_words_gain": "1 to 4 missing words",
    "multi_span_gain": "three gaps at once",
    "infill_gain": "a missing line",
}
SUFFIX_USES = {
    "suffix_use" if metric == "infill_gain" else metric.replace("_gain", "_suffix_use"): words
    for metric, words in GAINS.items()
}
ON_SCREEN = {
    "infill_bits_per_byte": ("a missing line", ".3f"),
    "new_name_gain": ("gain from both sides: a new word", "+.3f"),
    "few_words_gain": ("gain from both sides: 1 to 4 words", "+.3f"),
    "multi_span_gain": ("gain from both sides: three gaps", "+.3f"),
    "infill_gain": ("gain from both sides: a missing line", "+.3f"),
    "causal_bits_per_byte": ("a file from left to right", ".3f"),
    "format_ok": ("answers in the right form", ".0%"),
}
CAPTIONS = {
    "metrics": "Points are means over held-out rows, bars 95% intervals.",
    "loss": "Training loss: running means over the logged steps. Panels differ in objective, so they do not compare.",
    "masks": "Which keys each query attends to, in one packed row per denoiser; strong where a loss is taken.",
}
FILLS = """<p>Grey: the missing text. Below it, what each model wrote from both sides;
<mark class="same">green</mark> where it agrees with the missing text, <mark>yellow</mark> elsewhere.</p>"""
N_SHOWN = 8
TEXT_OPTIONS = ("--include", "--skip-undecodable")
"""Options that hints on the text may name."""

WHAT = """
<p class="lead">{verdict}</p>
<p>A causal PaLM of {n_params} parameters (<b>base</b>) was trained further in two ways with equal extra compute
({share}): with plain next-token prediction (<b>causal</b>, the control) and with UL2R (<b>ul2r</b>, mixture
{mixture}). All three are measured on files that none of them has seen.</p>
"""

LIMITS = """
<p>Shown here: within a small share of its pretraining compute, a model that never saw a gap learns the form of an
answer, and what that does to the cost of a gap; and how that compares with spending the same compute on more of the
same. A gain above 0 means that filling a gap from both sides costs less than continuing the text before it: it depends
on the kind of gap, so all kinds are shown. Whether the text after a gap is used is <code>suffix_use</code>: compare it
over the models, since a base that never saw a gap uses it, too.</p>
<p>Not shown here: better few-shot scores, or the paper's 2x saving. The paper has no result below 8B parameters. At
equal compute UL2R costs a tiny model some left-to-right quality (causal bits/byte), and exact whole lines are
rare.</p>
<p>Intervals: 95%, bootstrap over rows (1000 draws); they do not include the spread over training seeds. Each model is
measured at its best on these rows ({modes}). {on_rows} Gains are left_only minus infill: above 0, filling a gap costs
less than continuing the text before it; the end of the answer is not counted. Words are cut without the space before
them, which raises the gain, since left_only suffers more from it (docs/results.md). <code>suffix_use</code>: bits/byte
lost when the text after the gap (of several, after the last) is exchanged for another row's. <code>format_ok</code>:
unconstrained decoding gives the gap one span and ends.</p>
"""


@dataclass(frozen=True)
class Quickstart:
    """Fork the base, measure, report."""

    out: Path = Path("runs/quickstart")
    """Folder for checkpoints, figures, report.html and results.json. Run again to resume."""
    data: str = sources.STDLIB
    """`stdlib` (Python's own source files), a .txt or .jsonl file, or a folder of them."""
    checkpoint: Annotated[Path, tyro.conf.arg(aliases=("-c",))] = SHIPPED
    """Checkpoint to fork; the shipped one was made by `upalm run palm_tiny base`."""
    from_scratch: bool = False
    """Pretrain a base first, on `data`: that of `upalm run palm_tiny tiny` (about an hour on 2 cores). It takes the
    place of `checkpoint`."""
    include: tuple[str, ...] = ()
    """Patterns such as '*.py': exactly the matching files of a folder are read, as plain text if their kind is not
    known."""
    skip_undecodable: bool = False
    """Leave out text that is not UTF-8, or that the tokenizer cannot spell, and list it, instead of stopping."""
    mixture: str = "ul2r_gaps"
    """Mixture of the UL2R fork: ul2r_gaps, U-PaLM's with missing lines and short gaps beside its own, in chunks of
    random length, or ul2r, U-PaLM's."""
    n_steps: int = 220
    """Steps of each fork."""
    batch_size: int = 8
    """Rows in a batch."""
    seq_len: int = 256
    """Tokens in a row, and most tokens of a measured text; at most those of the base's rows."""
    optimizer: Adafactor = field(default_factory=lambda: Adafactor(Schedule("cosine", 7e-3, 7e-5), decay=False))
    """Optimizer of both forks."""
    n_rows: int = 160
    """Held-out gaps of each kind."""
    n_decoded: int = 96
    """Single-line gaps that are also decoded."""
    seed: int = 0
    """Seed of data order and noise."""

    def __post_init__(self):
        if not 1 <= self.n_decoded <= self.n_rows:
            raise ValueError(
                f"n_decoded is {self.n_decoded} of n_rows {self.n_rows}, expected at least 1 and at most n_rows."
            )
        if self.from_scratch and self.checkpoint != SHIPPED:
            raise ValueError(
                f"checkpoint is {self.checkpoint}, which --from-scratch would not use: leave one of the two out."
            )

    @property
    def base(self) -> Path:
        """Folder of the base, which --from-scratch makes."""
        return self.out / "base" if self.from_scratch else self.checkpoint

    def pretraining(self) -> train.TrainConfig:
        """The run that makes the base from scratch."""
        config = recipes.config("palm_tiny", "tiny")
        data = replace(config.data, source=self.data, include=self.include, skip_undecodable=self.skip_undecodable)
        return replace(config, out=self.base, data=data, seed=self.seed)

    def fork(self, name: str) -> train.TrainConfig:
        """The run of a fork: the two differ in their mixture alone."""
        mixture = "causal" if name == "causal" else self.mixture
        return train.TrainConfig(
            out=self.out / name,
            start=train.Continue(self.base),
            data=DataConfig(
                source=self.data,
                mixture=mixture,
                seq_len=self.seq_len,
                batch_size=self.batch_size,
                joint_budget=True,
                include=self.include,
                skip_undecodable=self.skip_undecodable,
            ),
            optimizer=self.optimizer,
            n_steps=self.n_steps,
            seed=self.seed,
            log_every=5,
            save_every=100,
            eval_every=self.n_steps,
        )

    def packed(self, config: DataConfig) -> DataConfig:
        """The paper's packed rows, of which the masks are drawn."""
        return replace(config, batch_size=24, joint_budget=False)


def main(args: Quickstart) -> None:
    started = time.monotonic()
    enable_compilation_cache()
    forks = {name: args.fork(name) for name in FORKS}
    check_runs(args, forks)
    text = sources.TextSource(args.data, args.include, args.skip_undecodable, TEXT_OPTIONS)
    untrained, tokenizer = prepare_base(args, text)
    # of stdlib, the published figures have all held-out modules, one of which, of 97 bytes, is also trained on
    corpus = text.load(partial(spelling_problem, tokenizer), keep_repeated=args.data == sources.STDLIB)
    for note in text.notes():
        print(note)
    rows = cut_rows(args, corpus.validation, tokenizer)
    if shortfall := describe_shortfall(rows, args.n_rows, args.n_decoded, args.seq_len):
        print(shortfall)
    tokens, held_out = (encode(tokenizer, documents) for documents in (corpus.train, corpus.validation))
    if untrained is not None:
        pretraining = args.pretraining()
        print(f"pretraining {pretraining.n_steps} steps: about an hour on 2 CPU cores; Ctrl-C and run again to resume")
        fit(pretraining, untrained, tokenizer, tokens, held_out, title="base")
    base, _, info = load_model(args.base)
    models = {"base": base}
    for name, config in forks.items():
        print(f"\n{name}: {args.n_steps} steps of {args.batch_size} x {config.data.seq_len} tokens", flush=True)
        models[name] = fit(config, base, tokenizer, tokens, held_out, title=name)

    ends = {"base": info.inputs_eos} | {name: ends_inputs(config.data) for name, config in forks.items()}
    measurements, fills = evaluate(args, models, tokenizer, corpus.validation, rows, ends)
    share = extra_compute(args.base, forks["ul2r"])
    save_results(args.out / "results.json", measurements, share, {k: list_fills(rows[k], fills[k]) for k in fills})
    figures = {
        "metrics": draw_metrics(measurements),
        "loss": report.draw_loss_curves({n: metrics.read(c.out / "metrics.jsonl") for n, c in forks.items()}),
        "masks": draw_masks(Loader(tokens, args.packed(forks["ul2r"].data), tokenizer.symbols, seed=args.seed)),
    }
    what = WHAT.format(
        n_params=f"{base.config.n_params / 1e6:.1f}M",
        share=format_share(share),
        mixture=args.mixture,
        verdict=verdict(measurements),
    )
    repeats = describe_repeats(rows)
    examples = "".join(format_fills(rows[kind], fills[kind]) for kind in fills)
    write_report(args.out, what, measurements, examples, figures, f"{shortfall} {repeats}")
    print(summarise(measurements, share, repeats))
    print(f"\nreport: {args.out / 'report.html'} ({time.monotonic() - started:.0f} s)")
    print(f"try: upalm infill -c {args.out / 'ul2r'} --text 'def add(a, b):<extra_id_0>return c'")


# --- Before training ------------------------------------------------------------------------------


def check_runs(args: Quickstart, forks: dict[str, train.TrainConfig]) -> None:
    """Refuse rows that are longer than the base's, and folders that hold something else.

    Raises:
        ValueError: what does not fit.
    """
    if args.from_scratch:
        pretraining = args.pretraining()
        assert isinstance(pretraining.start, train.Scratch)
        shape = pretraining.start.model
        check_folder(pretraining)
    else:
        shape = open_checkpoint(args.base)[0]
    if args.seq_len > shape.seq_len:
        raise ValueError(
            f"seq_len is {args.seq_len}, but the base, {args.base}, has rows of {shape.seq_len} tokens: "
            f"give --seq-len {shape.seq_len}."
        )
    for config in forks.values():
        check_folder(config)


def prepare_base(args: Quickstart, text: sources.TextSource) -> tuple[LazyModel | None, Tokenizer]:
    """Return the base as it is before it is pretrained, or None if it is given, and its tokenizer.

    Raises:
        ValueError: text that cannot be read.
    """
    if not args.from_scratch:
        return None, open_checkpoint(args.base)[1]
    text.load()  # refuses it in the words of this recipe, before a tokenizer is trained on it
    return prepare(args.pretraining())


def cut_rows(args: Quickstart, documents: Sequence[Document], tokenizer: Tokenizer) -> dict[str, Sequence[gaps.Gap]]:
    """Cut held-out gaps, by kind, that fit the longest form of a prompt, whichever model fills them.

    Raises:
        ValueError: there are fewer than two distinct gaps of a kind.
    """
    lines, words = cut_gaps(documents, tokenizer, args.seq_len, args.n_rows, inputs_eos=True)
    kinds = cut_kinds(documents, tokenizer, args.seq_len, words, inputs_eos=True)
    rows = {"line": lines, **kinds}
    for kind, some in rows.items():
        gaps.check_distinct(some, KINDS[kind])
    return rows


def ends_inputs(data: DataConfig) -> bool:
    """Whether some denoiser of the mixture ends its inputs with EOS."""
    return any(denoiser.inputs_eos for denoiser in ul2r.mixture(data.mixture))


# --- Results --------------------------------------------------------------------------------------


def evaluate(
    args: Quickstart,
    models: dict[str, Decoder],
    tokenizer: Tokenizer,
    documents: Sequence[Document],
    rows: dict[str, Sequence[gaps.Gap]],
    ends: dict[str, bool],
) -> tuple[dict[str, Measurement], dict[str, dict[str, list[str]]]]:
    """Measure each model, and fill the first gaps of two kinds: by kind and model.

    Args:
        args: settings.
        models: by name.
        tokenizer: of all models.
        documents: held-out text.
        rows: gaps by kind.
        ends: whether a model's inputs end with EOS.
    """
    measurements: dict[str, Measurement] = {}
    fills: dict[str, dict[str, list[str]]] = {"line": {}, "new_name": {}}
    kinds = {kind: some for kind, some in rows.items() if kind != "line"}
    with progress.Bar("evaluate", len(models)) as bar:
        for i, (name, model) in enumerate(models.items()):
            measurements[name] = found = measure(
                model,
                tokenizer,
                documents,
                rows["line"],
                rows["multi_span"],
                seq_len=args.seq_len,
                n_decoded=args.n_decoded,
                inputs_eos=ends[name],
                kinds=kinds,
            )
            fills["line"][name] = [found.prediction(i) for i in range(min(N_SHOWN, len(found.exact)))]
            mode = found.kinds["new_name"].infill_mode
            words = decode_rows(model, tokenizer, rows["new_name"][:N_SHOWN], mode, inputs_eos=ends[name])
            fills["new_name"][name] = [span for (span,) in words.spans]
            bar.update(i + 1)
    return measurements, fills


def extra_compute(base_folder: Path, fork: train.TrainConfig) -> float | None:
    """Return the FLOPs of a fork over those that made the base; None if the base does not say how many."""
    base_stages = stages(base_folder)
    if base_stages is None:
        return None
    return fork.n_steps * fork.data.batch_size * fork.data.seq_len / sum(stage.n_tokens for stage in base_stages)


def format_share(share: float | None) -> str:
    return f"{share:.1%} of the base's own" if share is not None else "the base does not say what share of its own"


def summarise(measurements: dict[str, Measurement], share: float | None, repeats: str = "") -> str:
    """Return seven rows and two sentences of text, or three where gaps repeat, within 80 columns."""
    estimates = [m.estimates() for m in measurements.values()]
    rows = [(label, *(f"{e[metric].mean:{form}}" for e in estimates)) for metric, (label, form) in ON_SCREEN.items()]
    title = f"The same extra compute ({format_share(share)}), spent in two ways"
    table = text_table.format_table(("held-out Python, bits per byte", *measurements), rows)
    return f"\n{title}\n\n{table}\n\n{textwrap.fill(f'{verdict(measurements)} {repeats}', 80)}"


def verdict(measurements: dict[str, Measurement]) -> str:
    difference = compare(measurements["ul2r"], measurements["causal"])["infill_bits_per_byte"]
    sign, better = (-1, "fewer") if difference.mean < 0 else (1, "more")
    low, high = sorted((sign * difference.low, sign * difference.high))
    doubt = "" if difference.high < 0 or difference.low > 0 else "not significantly "
    gains = describe_gains(measurements["ul2r"].estimates())
    return (
        f"UL2R fills a missing line with {abs(difference.mean):.3f} {doubt}{better} bits/byte than the control (95% "
        f"interval of the paired difference {low:.3f} to {high:.3f}). {gains}"
    )


def describe_gains(estimates: dict[str, Estimate]) -> str:
    """Say what both sides save against the text before the gap alone, by kind of gap."""
    savings = [
        f"{estimates[metric].mean:.3f} [{estimates[metric].low:.3f}, {estimates[metric].high:.3f}] on {kind}"
        for metric, kind in GAINS.items()
    ]
    return (
        "Against its own continuation from the left alone, seeing both sides saves bits/byte (below 0: costs): "
        f"{'; '.join(savings)}."
    )


def save_results(
    path: Path,
    measurements: dict[str, Measurement],
    share: float | None,
    fills: dict[str, list[dict[str, Any]]],
) -> None:
    results = {
        "extra_compute": share,
        "models": {name: {k: e._asdict() for k, e in m.estimates().items()} for name, m in measurements.items()},
        "differences": {k: e._asdict() for k, e in compare(measurements["ul2r"], measurements["causal"]).items()},
        "fills": fills,
    }
    write_atomically(path, json.dumps(results, indent=1, allow_nan=False) + "\n")


def write_report(
    out: Path,
    what: str,
    measurements: dict[str, Measurement],
    examples: str,
    figures: dict[str, report.Figure],
    on_rows: str = "",
) -> None:
    """Write each figure as PNG, and report.html; `on_rows` says which gaps are few or repeat."""
    for name, figure in figures.items():
        report.save_figure(out / f"{name}.png", figure)
    images = {name: report.format_figure(figure, CAPTIONS[name]) for name, figure in figures.items()}
    modes = "; ".join(
        f"{name} infills with mode {m.infill_mode}, continues {m.left_only_format}" for name, m in measurements.items()
    )
    sections = [
        ("What was done", what),
        ("What came of it", images["metrics"]),
        ("The first eight gaps of two kinds, not selected", FILLS + examples),
        ("All measures", report.format_estimates({name: m.estimates() for name, m in measurements.items()})),
        ("What it means", LIMITS.format(modes=modes, on_rows=on_rows.strip())),
        ("Training", images["loss"] + images["masks"]),
    ]
    report.save_html(out / "report.html", "UL2R on a laptop", sections)


def draw_metrics(measurements: dict[str, Measurement]) -> report.Figure:
    differences = compare(measurements["ul2r"], measurements["causal"])
    estimates = {name: m.estimates() for name, m in measurements.items()}

    def by_model(words: dict[str, str]) -> dict[str, dict[str, Estimate]]:
        rows = {textwrap.fill(label, 26): metric for metric, label in words.items()}
        return {label: {name: e[metric] for name, e in estimates.items()} for label, metric in rows.items()}

    return report.draw_estimates(
        [
            report.Panel(
                "UL2R minus the control: paired difference, bits per byte",
                {LABELS[name]: {"difference": e} for name, e in differences.items()},
                "left of zero: UL2R needs fewer bits",
            ),
            report.Panel(
                "Both sides against continuing from the left, bits per byte",
                by_model(GAINS),
                "right of zero: filling costs less than continuing from the left",
            ),
            report.Panel(
                "Use of the text after the gap, bits per byte",
                by_model(SUFFIX_USES),
                "right of zero: the text after the gap lowers its cost",
            ),
            report.Panel(
                "Answers, share",
                by_model({"format_ok": "in the right form, without the grammar", "line_exact_match": "exact lines"}),
                "",
                (-0.03, 1.03),
            ),
        ]
    )


def draw_masks(loader: Loader) -> report.Figure:
    batch = loader.batch(0)
    visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask)).mask(loader.config.seq_len)
    return report.draw_masks(batch, np.asarray(visible), [d.name for d in loader.mixture])


def list_fills(rows: Sequence[gaps.Gap], fills: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return the first missing texts, each with every model's fill, for JSON."""
    n = min(map(len, fills.values()))
    return [
        {"missing": row.spans[0], "filled": {name: spans[i] for name, spans in fills.items()}}
        for i, row in enumerate(rows[:n])
    ]


def format_fills(rows: Sequence[gaps.Gap], fills: dict[str, list[str]]) -> str:
    """Return the first gaps, good or bad, with each model's fill, as HTML."""
    n = min(map(len, fills.values()))
    return "".join(
        report.format_fills(
            "\n".join(row.parts[0].split("\n")[-4:]),
            row.spans[0],
            "\n".join(row.parts[1].split("\n")[:3]),
            {name: spans[i] for name, spans in fills.items()},
        )
        for i, row in enumerate(rows[:n])
    )


if __name__ == "__main__":
    main(recipes.parse(Quickstart, __doc__))
