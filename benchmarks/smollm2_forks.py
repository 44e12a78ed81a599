"""Continue one checkpoint in several ways, and measure each fork on the same gaps, row by row.

    python benchmarks/smollm2_forks.py --checkpoint models/smollm2 --data data/smollm2 --prose wikitext.txt \\
        --forks base ul2r causal --seeds 0 1 2 --out runs/forks/rows
    python benchmarks/pool_forks.py --rows runs/forks/rows --json docs/results/smollm2_forks.json

A fork is a change of `upalm run ul2r_smollm2`; `FORKS` lists them. One JSON file per checkpoint holds the bits of
every row, so that `pool_forks.py` can pool seeds and compare forks in pairs, and the settings that decide them. A
measured checkpoint is not measured again, and a fork whose checkpoints all are is not trained again. Files of other
settings in `out` are refused before anything is trained. On a GPU one process is best: its forks share compiled
programs, and sixteen at once compiled for six minutes.
"""

import hashlib
import json
import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import tyro

from upalm import ul2r
from upalm.checkpoints.arrays import checksums, to_arrays
from upalm.checkpoints.folder import load_model
from upalm.data.readers import Document
from upalm.data.shards import Shards, manifest_hash
from upalm.data.tokenizer import Tokenizer
from upalm.distributed.runtime import enable_compilation_cache, versions
from upalm.evals import text_metrics
from upalm.evals.infilling import gaps, prose, scores
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.held_out import MAX_SPAN_TOKENS, cut_gaps, cut_kinds, measure_gaps
from upalm.files import sha256_file, write_atomically
from upalm.inference.config import Attention
from upalm.model.palm import Decoder
from upalm.training import loop, recipes
from upalm.training.config import CheckpointConfig, Continue, TrainConfig
from upalm.training.feed import Feed
from upalm.training.launch import run_once
from upalm.training.optim import Adafactor
from upalm.ul2r.denoisers import SpanCorruption

UL2R_FORK, CAUSAL_FORK = (recipes.config("ul2r_smollm2", name) for name in ("cpu", "causal"))


@dataclass(frozen=True)
class Fork:
    """A run, and the steps after which it is measured."""

    config: TrainConfig
    steps: tuple[int, ...]
    mask: Attention = "prefix"
    """Of the inputs, in training and in prompts with gaps."""


def short(config: TrainConfig, mask: Attention = "prefix", **data) -> Fork:
    """An ablation: 100 steps of 4 rows, half of the recipe's, since there are ten of them."""
    return Fork(replace(config, data=replace(config.data, batch_size=4, **data)), (100,), mask)


def longer(config: TrainConfig, **data) -> Fork:
    """300 steps."""
    config = replace(config, n_steps=300, save_every=50, eval_every=100)
    return Fork(replace(config, data=replace(config.data, **data)), (50, 100, 200, 300))


def longest(config: TrainConfig, **data) -> Fork:
    """1000 steps of 16 x 512 tokens: 8.2 million."""
    config = replace(config, n_steps=1000, save_every=250, eval_every=250)
    data = {"seq_len": 512, "batch_size": 16, **data}
    return Fork(replace(config, data=replace(config.data, **data)), (250, 500, 1000))


def with_peak(fork: Fork, peak: float) -> Fork:
    """The same fork with another learning rate."""
    schedule = replace(fork.config.optimizer.schedule, peak=peak, final=peak / 100)
    return replace(fork, config=replace(fork.config, optimizer=Adafactor(schedule, decay=False)))


def for_infill(mixture: ul2r.Mixture) -> ul2r.Mixture:
    """Change a mixture as `ul2r_infill` changes `ul2r`: EOS after inputs, and rolled masks."""
    return tuple(replace(d, inputs_eos=True, roll=True) if isinstance(d, SpanCorruption) else d for d in mixture)


R, X, S = ul2r.UL2R_INFILL
LINE = replace(R, name="line", mean_span=12.0)
"""A denoiser of line length: a line of Python has about 12 tokens."""
LINES: ul2r.Mixture = (
    replace(R, weight=0.2),
    replace(LINE, weight=0.4),
    replace(X, weight=0.1),
    replace(S, weight=0.3),
)
RANDOM_GAPS: ul2r.Mixture = (
    *(replace(d, shortest=0.25, weight=w) for d, w in ((R, 0.2), (X, 0.1), (S, 0.3))),
    ul2r.Gaps(name="line", mode="nlg", mean_span=12.0, inputs_eos=True, shortest=0.25, weight=0.2),
    ul2r.Gaps(name="words", mode="nlu", mean_span=4.0, n_spans=3, inputs_eos=True, shortest=0.25, weight=0.2),
)
"""An earlier `ul2r_gaps`: single gaps of random place and length, and no lines."""
WHOLE_LINES: ul2r.Mixture = (
    *(replace(d, shortest=0.25, weight=w) for d, w in ((R, 0.15), (X, 0.1), (S, 0.25))),
    ul2r.Lines(name="line", mode="nlg", mean_span=12.0, inputs_eos=True, shortest=0.25, weight=0.3),
    RANDOM_GAPS[-1],
)
"""Another one: lines, and no other single gaps."""
NO_MODES = tuple(replace(d, mode="none") for d in ul2r.UL2R_INFILL)
NO_EOS = tuple(replace(d, inputs_eos=False) for d in ul2r.UL2R_INFILL)

FORKS = {
    "ul2r": longer(UL2R_FORK),
    "causal": longer(CAUSAL_FORK),
    "ul2r_4e-3": with_peak(longer(UL2R_FORK), 4e-3),
    "ul2r_gaps": longer(UL2R_FORK, mixture="ul2r_gaps"),
    "ul2r_512": longer(UL2R_FORK, seq_len=512),
    "causal_512": longer(CAUSAL_FORK, seq_len=512),
    "ul2_512": longer(UL2R_FORK, seq_len=512, mixture=for_infill(ul2r.UL2)),
    "lines_512": longer(UL2R_FORK, seq_len=512, mixture=LINES),
    "long_ul2r": longest(UL2R_FORK),
    "long_causal": longest(CAUSAL_FORK),
    "long_ul2": longest(UL2R_FORK, mixture=for_infill(ul2r.UL2)),
    "long_lines": longest(UL2R_FORK, mixture=LINES),
    "long_gaps": longest(UL2R_FORK, mixture="ul2r_gaps"),
    "short": short(UL2R_FORK),
    "short_causal": short(CAUSAL_FORK),
    "short_causal_mask": short(UL2R_FORK, mask="causal"),
    "short_no_modes": short(UL2R_FORK, mixture=NO_MODES),
    "short_gaps": short(UL2R_FORK, mixture="ul2r_gaps"),
    "short_random_gaps": short(UL2R_FORK, mixture=RANDOM_GAPS),
    "short_whole_lines": short(UL2R_FORK, mixture=WHOLE_LINES),
    "short_ul2": short(UL2R_FORK, mixture=for_infill(ul2r.UL2)),
    "short_no_eos": short(UL2R_FORK, mixture=NO_EOS),
    "short_no_roll": short(UL2R_FORK, mixture="ul2r_eos"),
    "short_paper": short(UL2R_FORK, mixture="ul2r"),
    "short_5e-4": with_peak(short(UL2R_FORK), 5e-4),
    "short_1e-3": with_peak(short(UL2R_FORK), 1e-3),
}
"""Forks by name; "base" is the checkpoint itself."""

WHOLE = ("several", "new_name")
"""Kinds of gaps that are also measured between borders of tokens."""
KINDS = ("line", "short", "several", "prose", "new_name", *(f"{kind}_whole" for kind in WHOLE))
"""Kinds of gaps."""


@dataclass(frozen=True)
class Case:
    """Forks to train and to measure."""

    checkpoint: Path
    """The model that is continued."""
    data: Path
    """Folder that `upalm data build` wrote; its held-out documents are measured."""
    prose: Path
    """Text file with one paragraph per line, which no fork is trained on."""
    out: Path
    """Folder for one JSON file per checkpoint."""
    forks: tuple[str, ...]
    """Names from `FORKS`, or base."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each fork."""
    work: Path = Path("runs/forks")
    """Folder for the runs."""
    keep: bool = True
    """Keep the last checkpoint of each run; others are deleted once they are measured."""
    n_rows: int = 256
    """Gaps of each kind for the last checkpoint of a run, and for the base."""
    n_rows_before: int = 64
    """Gaps of each kind for earlier checkpoints."""
    n_decoded: int = 64
    """Single-line gaps that are also decoded, at most."""
    seq_len: int = 512
    """Longest prompt with its answer, and longest excerpt, in tokens."""
    kinds: tuple[str, ...] = KINDS
    """Kinds of gaps to measure; each costs eight passes over its rows."""
    shrink: int = 1
    """Divides steps and rows per batch, to try the path."""

    def __post_init__(self):
        if unknown := set(self.kinds) - set(KINDS):
            raise ValueError(f"no kinds {sorted(unknown)}: expected some of {', '.join(KINDS)}.")
        if "line" not in self.kinds:
            raise ValueError("no kind 'line', whose gaps are decoded: add it to --kinds.")


# --- Rows -----------------------------------------------------------------------------------------


def held_out_documents(folder: Path, tokenizer: Tokenizer) -> list[Document]:
    """Read the text of the held-out documents back from their tokens."""
    shards = Shards(str(folder), "validation", *tokenizer.hashes)
    tokens = shards.read(np.arange(len(shards.block_tokens)))
    pieces = np.split(tokens.ids, tokens.offsets[1:-1])
    texts = [tokenizer.decode(ids[:-1].tolist()) for ids in pieces]  # without EOS
    return [Document(str(i), text) for i, text in enumerate(texts) if len(text) > 600]  # as gaps need


class Rows(NamedTuple):
    """What is measured, and the tokenizer of all forks."""

    tokenizer: Tokenizer
    gaps: dict[str, Sequence[Gap]]
    """By kind."""
    texts: list[str]
    """Read from left to right."""


def cut_rows(args: Case, tokenizer: Tokenizer, documents: list[Document], n: int) -> Rows:
    """Cut up to n gaps of each kind; a longer list begins with the shorter one.

    Kinds cut words without the space before them, where many tokenizers have no border; `several_whole` and
    `new_name_whole` have the same gaps, widened to whole tokens.
    """
    lines, words = cut_gaps(documents, tokenizer, args.seq_len, n, inputs_eos=True)
    windows = [row.parts[0] + row.spans[0] + row.parts[1] for row in lines]
    paragraphs = [x.strip() for x in args.prose.read_text("utf-8").split("\n") if 60 <= len(x.split()) <= 200]
    random.Random(0).shuffle(paragraphs)
    kinds: dict[str, Sequence[Gap]] = {
        "line": lines,
        "short": prose.cut_rows("short", windows, prose.Cut(max_words=3))[0],
        "several": words,
        "prose": prose.cut_rows("prose", paragraphs[:n], prose.Cut())[0],
        "new_name": cut_kinds(documents, tokenizer, args.seq_len, words, inputs_eos=True)["new_name"],
    }
    kinds |= {f"{kind}_whole": [widen_to_tokens(tokenizer, row) for row in kinds[kind]] for kind in WHOLE}
    return Rows(
        tokenizer,
        {kind: kinds[kind] for kind in args.kinds},
        list(gaps.take_excerpts(documents, n, lambda x: len(tokenizer.encode(x)) <= args.seq_len)),
    )


def widen_to_tokens(tokenizer: Tokenizer, row: Gap) -> Gap:
    """Move the ends of each span outwards to borders of the tokens of the whole text, where training cuts it."""
    pieces = [piece.encode() for pair in zip(row.parts, (*row.spans, ""), strict=True) for piece in pair]
    text = b"".join(pieces)
    lengths = [len(tokenizer.token_bytes[i]) for i in tokenizer.encode(text.decode())]
    borders = np.cumsum([0, *lengths])
    borders = borders[[i == len(text) or text[i] & 0xC0 != 0x80 for i in borders]]  # none inside a character
    edges = np.cumsum([len(piece) for piece in pieces[:-2]])
    begins = borders[np.searchsorted(borders, edges[0::2], "right") - 1]
    ends = borders[np.searchsorted(borders, edges[1::2])]
    cuts = [0, *np.stack([begins, ends], 1).ravel().tolist(), len(text)]
    texts = [text[a:b].decode() for a, b in zip(cuts, cuts[1:], strict=False)]
    return Gap(tuple(texts[0::2]), tuple(texts[1::2]))


# --- Settings -------------------------------------------------------------------------------------

Settings = dict[str, Any]
"""What decides the rows of a file, by name; text and weights by their hash."""


def hash_text(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def shared_settings(args: Case, base: Decoder, tokenizer: Tokenizer, documents: Sequence[Document]) -> Settings:
    """Return the settings that all files of a run of this script share."""
    weights = {name: int(x) for name, x in checksums(to_arrays(base)).items()}
    return {
        "checkpoint": hash_text(json.dumps([asdict(base.config), weights])),
        "tokenizer": tokenizer.hash,
        "data": manifest_hash(str(args.data))[:16],
        "held_out": hash_text("\0".join(document.text for document in documents)),
        "prose": sha256_file(args.prose)[:16],
        "seq_len": args.seq_len,
        "n_decoded": args.n_decoded,
        "shrink": args.shrink,
        "kinds": list(args.kinds),
    }


class File(NamedTuple):
    """Place of the measures of a checkpoint, and their settings."""

    path: Path
    settings: Settings


def list_files(args: Case, name: str, seed: int, shared: Settings) -> dict[int, File]:
    """Return the files of a fork by step; the base has one, of step 0."""
    if name == "base":
        return {0: File(args.out / "base-s0-0.json", shared | {"n_rows": args.n_rows, "training": {}})}
    config, fork = fork_config(args, name, seed), FORKS[name]
    training = {
        "mixture": ", ".join(map(repr, ul2r.mixture(config.data.mixture))),  # a name may come to mean another one
        "batch": f"{config.data.batch_size} x {config.data.seq_len}",
        "n_steps": config.n_steps,
        "optimizer": repr(config.optimizer),
        "mask": fork.mask,
    }
    found = {}
    for step in sorted({max(step // args.shrink, 1) for step in fork.steps}):
        n_rows = args.n_rows if step == config.n_steps else args.n_rows_before
        settings = shared | {"n_rows": n_rows, "training": training}
        found[step] = File(args.out / f"{name}-s{seed}-{step}.json", settings)
    return found


def by_name(settings: Settings, packages: dict[str, str]) -> Settings:
    """Return all that decides the numbers of a file, one by one."""
    alone = {key: value for key, value in settings.items() if key != "training"}
    training = {f"training's {key}": value for key, value in settings["training"].items()}
    return alone | training | {f"version of {package}": x for package, x in packages.items()}


def is_measured(file: File) -> bool:
    """Return whether a file is there; it may have more kinds of gaps.

    Raises:
        ValueError: it has other settings or fewer kinds, or does not say: it would pass for what is asked, or be lost.
    """
    if not file.path.is_file():
        return False
    record = json.loads(file.path.read_text("utf-8"))
    if "settings" not in record:
        raise ValueError(
            f"{file.path} does not say with which settings it was measured: it is of an earlier version. "
            "Choose another --out; pool_forks.py still reads it."
        )
    kept, now = by_name(record["settings"], record["versions"]), by_name(file.settings, versions())
    if set(now["kinds"]) <= set(kept["kinds"]):
        now["kinds"] = kept["kinds"]
    differences = [f"{key} {kept.get(key)}, now {now.get(key)}" for key in kept | now if kept.get(key) != now.get(key)]
    if differences:
        raise ValueError(
            f"{file.path} is of other settings ({'; '.join(differences)}): choose another --out, and another --work if "
            "the forks are of another checkpoint, data or training."
        )
    return True


# --- Measures -------------------------------------------------------------------------------------


def rounded(values: np.ndarray) -> list[float]:
    return [round(float(x), 3) for x in values]


def measure(args: Case, folder: Path, rows: Rows, mask: Attention) -> dict:
    """Measure a checkpoint row by row, in bits."""
    model, _, info = load_model(folder)
    how, tokenizer = {"inputs_eos": info.inputs_eos, "attention": mask}, rows.tokenizer
    kinds, mode = {}, "none"
    for kind, some in rows.gaps.items():
        found = measure_gaps(model, tokenizer, some, seq_len=args.seq_len, **how)
        mode = found.infill_mode if kind == "line" else mode
        kinds[kind] = {
            "mode": found.infill_mode,
            "left_only_format": found.left_only_format,
            "between_borders": [int(widen_to_tokens(tokenizer, row) == row) for row in some],
            "n_bytes": found.infill.n_bytes.tolist(),
            "infill": rounded(found.infill.bits),
            "left_only": rounded(found.left_only.bits),
            "shuffled_rows": found.shuffled_rows.tolist(),
            "shuffled": rounded(found.shuffled.bits),
        }
    causal = scores.score_texts(model, tokenizer, rows.texts)
    decoded = rows.gaps["line"][: args.n_decoded]
    at_once = {"max_new_tokens": MAX_SPAN_TOKENS, "batch_size": len(decoded)}  # one shape, so one program
    decode = partial(scores.decode_rows, model, tokenizer, decoded, mode, **at_once, **how)
    fills = {"grammar": decode(), "free": decode(constrained=False)}
    spans = {name: [x[0].split("\n")[0] for x in found.spans] for name, found in fills.items()}
    compared: dict = {"mode": mode, "format_ok": fills["free"].format_ok.astype(int).tolist()}
    for name, some in spans.items():
        pairs = [(span, row.spans[0]) for span, row in zip(some, decoded, strict=True)]
        compared[f"exact_{name}"] = [int(text_metrics.match_line(*pair)) for pair in pairs]
        compared[f"edit_similarity_{name}"] = [
            round(text_metrics.edit_similarity(a.strip(), b.strip()), 3) for a, b in pairs
        ]
    return {
        "n_params": model.config.n_params,
        "compute_dtype": model.config.compute_dtype,
        "kinds": kinds,
        "causal": {"bits": rounded(causal.bits), "n_bytes": causal.n_bytes.tolist()},
        "decoded": compared,
        "fills": [
            {"gap": row.spans[0].strip(), **{name: some[i].strip() for name, some in spans.items()}}
            for i, row in enumerate(decoded[:12])
        ],
    }


def save(file: File, name: str, seed: int, step: int, tokens: int, found: dict, seconds: float) -> None:
    about = {
        "fork": name,
        "seed": seed,
        "step": step,
        "tokens": tokens,
        "device": jax.devices()[0].device_kind,
        "matmul_precision": jax.config.values["jax_default_matmul_precision"] or "default",
        "versions": versions(),
        "settings": file.settings,
        "seconds": round(seconds, 1),
    }
    write_atomically(file.path, json.dumps(about | found) + "\n")
    bits = {k: sum(v["infill"]) / sum(v["n_bytes"]) for k, v in found["kinds"].items()}
    gain = {k: sum(v["left_only"]) / sum(v["n_bytes"]) - bits[k] for k, v in found["kinds"].items()}
    ok = np.mean(found["decoded"]["format_ok"])
    shown = " ".join(f"{k} {bits[k]:.3f} gain {gain[k]:+.3f};" for k in bits)
    print(f"{file.path.stem}: {shown} format_ok {ok:.2f}, {seconds:.0f} s", flush=True)


# --- Forks ----------------------------------------------------------------------------------------


class CausalFeed(Feed):
    """Batches under a plain causal mask."""

    def next(self):
        return super().next().causal()

    def validation(self):
        return (batch.causal() for batch in super().validation())


def fork_config(args: Case, name: str, seed: int) -> TrainConfig:
    """Return the run of a fork from this checkpoint on these data."""
    config, k = FORKS[name].config, args.shrink
    return replace(
        config,
        out=args.work / f"{name}-s{seed}",
        start=Continue(args.checkpoint),
        data=replace(config.data, source=str(args.data), batch_size=max(config.data.batch_size // k, 1)),
        n_steps=max(config.n_steps // k, 1),
        save_every=max(config.save_every // k, 1),
        eval_every=max(config.eval_every // k, 1),
        checkpoints=CheckpointConfig(last=99),
        seed=seed,
    )


def train(config: TrainConfig, mask: Attention) -> None:
    """Train a fork, unless it is done."""
    loop.Feed = CausalFeed if mask == "causal" else Feed  # the objective has no such choice
    run_once(config)


def run_fork(args: Case, name: str, seed: int, files: dict[int, File], rows: Callable[[int], Rows]) -> None:
    """Train a fork, measure its checkpoints and delete those that are no longer needed."""
    files = {step: file for step, file in files.items() if not is_measured(file)}
    if not files:
        return
    config, mask = fork_config(args, name, seed), FORKS[name].mask
    started = time.monotonic()
    train(config, mask)
    print(f"{name}-s{seed}: trained in {time.monotonic() - started:.0f} s", flush=True)
    shutil.copy(config.out / "metrics.jsonl", args.out / f"{name}-s{seed}.metrics.jsonl")
    for step, file in files.items():
        started = time.monotonic()
        found = measure(args, config.out / "steps" / str(step), rows(file.settings["n_rows"]), mask)
        tokens = step * config.data.batch_size * config.data.seq_len
        save(file, name, seed, step, tokens, found, time.monotonic() - started)
    for checkpoint in (config.out / "steps").iterdir():
        if not args.keep or checkpoint.name != str(config.n_steps):
            shutil.rmtree(checkpoint)


def run_base(args: Case, file: File, rows: Callable[[int], Rows]) -> None:
    """Measure the checkpoint that the forks start from."""
    if not is_measured(file):
        started = time.monotonic()
        found = measure(args, args.checkpoint, rows(args.n_rows), "prefix")
        save(file, "base", 0, 0, 0, found, time.monotonic() - started)


def main(args: Case) -> None:
    if unknown := set(args.forks) - {"base", *FORKS}:
        raise ValueError(f"no forks {sorted(unknown)}: expected base or some of {', '.join(FORKS)}.")
    enable_compilation_cache()
    args.out.mkdir(parents=True, exist_ok=True)
    base, tokenizer, _ = load_model(args.checkpoint)
    documents = held_out_documents(args.data, tokenizer)
    shared = shared_settings(args, base, tokenizer, documents)
    del base
    rows = lru_cache(lambda n: cut_rows(args, tokenizer, documents, n))
    files = {(seed, name): list_files(args, name, seed, shared) for seed in args.seeds for name in args.forks}
    for some in files.values():
        for file in some.values():
            is_measured(file)  # what is refused is refused before hours of training
    for (seed, name), some in files.items():
        if name == "base":
            run_base(args, some[0], rows)
        else:
            run_fork(args, name, seed, some, rows)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main(tyro.cli(Case, description=__doc__))
