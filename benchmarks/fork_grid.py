"""Measure forks of a base over mixtures, rates, batches and steps, by the measures of the quickstart.

    python benchmarks/fork_grid.py --out grid.json
    python benchmarks/fork_grid.py --out grid.json --mixtures ul2r_eos causal --peaks 1e-2 --batches 4x512x220 8x256x220
    python benchmarks/fork_grid.py --out part1.json --part 1 4      (one of four processes that share the grid)

The rate is an input of the step, so all forks of one batch shape run one compiled program. Each fork is an entry of the
result as soon as it is measured; its time is printed alone, since it is another in every run. Kinds of gaps beside the
quickstart's lines: a few words within a line, a new word (`new_name`), and three lines. A mixture is a name, or
denoisers as `upalm.ul2r.mixture` reads them.
"""

import itertools
import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
import tyro

import upalm
from upalm import ul2r
from upalm.checkpoints.folder import export, load_model
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data import sources
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.readers import Document
from upalm.data.tokenizer import Tokenizer
from upalm.data.tokens import Tokens, encode
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.infilling import scores
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.held_out import cut_gaps, cut_kinds, measure
from upalm.files import write_atomically
from upalm.inference.config import Attention, Mode
from upalm.inference.prompts import prompt_ids
from upalm.model.palm import Decoder
from upalm.training.loss import loss_fn
from upalm.training.optim import Schedule, scale_by_layer_rms

N_BLOCK_LINES = 3
LEFT_ONLY: tuple[tuple[Mode, Attention], ...] = (("none", "causal"), ("none", "prefix"), ("s2s", "prefix"))


@dataclass(frozen=True)
class Case:
    """Forks of a base over mixtures, rates, batches and steps."""

    out: Path
    """File for the numbers."""
    checkpoint: Path = upalm.PALM_TINY
    """The base."""
    data: str = sources.STDLIB
    """Text whose held-out documents are measured."""
    train_data: str = ""
    """Text of the forks; empty for that of `data`."""
    mixtures: tuple[str, ...] = ("ul2r_eos", "ul2r_infill", "ul2", "causal")
    """Names, or denoisers."""
    peaks: tuple[float, ...] = (3e-3, 1e-2, 2e-2)
    """Peaks of the learning rate."""
    batches: tuple[str, ...] = ("8x256x280",)
    """ROWSxTOKENSxSTEPS."""
    seeds: tuple[int, ...] = (0,)
    """Seeds of each fork."""
    base: bool = True
    """Measure the base, too."""
    n_rows: int = 160
    """Gaps of each kind."""
    n_decoded: int = 48
    """Lines that are also decoded."""
    part: tuple[int, int] = (0, 1)
    """Number of this process, from 0, and of all that share the grid."""
    export: Path | None = None
    """Folder for the weights of each fork; they are not kept without it."""

    def __post_init__(self):
        for shape in self.batches:
            if not re.fullmatch(r"\d+x\d+x\d+", shape):
                raise ValueError(f"--batches {shape}: expected ROWSxTOKENSxSTEPS, such as 8x256x280.")
        for mixture in self.mixtures:
            ul2r.mixture(mixture)  # before hours of training


@partial(jax.jit, static_argnames="n_denoisers", donate_argnames=("model", "state"))
def step(model, state, batch, rate, n_denoisers):
    """One step of `Adafactor(decay=False)` whose rate is an argument."""
    (_, sums), grads = eqx.filter_value_and_grad(loss_fn, has_aux=True)(model, batch, n_denoisers=n_denoisers)
    grads = jax.tree.map(lambda g: g / jnp.maximum(jnp.sum(sums.weight), 1), grads)
    with jax.numpy_dtype_promotion("standard"):
        updates, state = optimizer(rate).update(grads, state, model)
    return eqx.apply_updates(model, updates), state, jnp.sum(sums.nll) / jnp.sum(sums.weight)


def optimizer(rate) -> optax.GradientTransformation:
    return optax.chain(
        optax.clip_by_global_norm(1.0),
        optax.scale_by_factored_rms(factored=False, decay_rate=0.8, epsilon=1e-30),
        optax.scale(-rate),
        scale_by_layer_rms(),
        optax.ema(0.9, debias=False),
    )


def train(base: Decoder, tokenizer: Tokenizer, tokens: Tokens, data: DataConfig, peak: float, n_steps: int, seed: int):
    """Return the fork, and its mean loss over the last tenth."""
    model, state = jax.tree.map(jnp.copy, base), optimizer(1.0).init(eqx.filter(base, eqx.is_array))
    loader = Loader(tokens, data, tokenizer.symbols, seed=seed)
    rates = Schedule("cosine", peak, peak / 100).build(n_steps)
    losses = []
    for i, batch in enumerate(loader.batches(0, n_steps)):
        model, state, loss = step(model, state, batch, jnp.float32(rates(i)), n_denoisers=len(loader.mixture))
        losses.append(loss)
    return model, float(jnp.mean(jnp.stack(losses[-max(n_steps // 10, 1) :])))


def cut_blocks(documents, n: int) -> list[Gap]:
    """Three whole lines are missing, with whole lines of up to 400 and 200 bytes around them."""
    rows = []
    for i in range(50 * n):
        if len(rows) == n:
            break
        rng = random.Random(f"blocks:{i}")
        lines = rng.choice(documents).text.split("\n")
        at = rng.randrange(max(len(lines) - N_BLOCK_LINES, 1))
        span = "\n".join(lines[at : at + N_BLOCK_LINES])
        before, after = "\n".join(lines[:at])[-400:], "\n".join(lines[at + N_BLOCK_LINES :])[:200]
        before = before[before.find("\n") + 1 :] + "\n"
        fits = len(before) > 100 and len(after) > 50 and 24 <= len(span) <= 180
        if fits and "<extra_id_" not in before + span + after:
            rows.append(Gap((before, "\n" + after), (span,)))
    return rows


def gain(model: Decoder, tokenizer: Tokenizer, rows: Sequence[Gap], modes, inputs_eos: bool) -> dict:
    """Bits per byte from both sides and from the left, each in the form that costs the fewest, and their difference."""
    infill = min(
        (scores.score_spans(model, tokenizer, rows, m, inputs_eos).bits for m in modes), key=lambda x: x.bits.sum()
    )
    left = min(
        (scores.score_left_only(model, tokenizer, rows, mode, attention) for mode, attention in LEFT_ONLY),
        key=lambda x: x.bits.sum(),
    )
    estimate = scores.infill_gain(left, infill)
    return {"infill": infill.bits.sum() / infill.n_bytes.sum(), "left": left.bits.sum() / left.n_bytes.sum()} | {
        "gain": estimate._asdict()
    }


def cut_rows(
    args: Case, base: Decoder, tokenizer: Tokenizer, documents: Sequence[Document]
) -> tuple[list[Gap], list[Gap], dict[str, list[Gap]]]:
    """Cut lines, three gaps at once, and further kinds."""
    longest = min(base.config.seq_len, 256)
    lines, threes = cut_gaps(documents, tokenizer, longest, args.n_rows, inputs_eos=True)
    further = cut_kinds(documents, tokenizer, longest, threes, inputs_eos=True)
    kinds = {
        "words": further["few_words"],
        "new_name": further["new_name"],
        "block": cut_blocks(documents, args.n_rows),
    }
    kinds = {
        kind: [row for row in rows if len(prompt_ids(tokenizer, row.parts, "nlg", True)) + 80 < base.config.seq_len]
        for kind, rows in kinds.items()
    }
    return lines, threes, kinds


def show(fork: Sequence[Any], record: dict[str, Any], seconds: float) -> None:
    gains = " ".join(f"{kind} {found['gain']['mean']:+.3f}" for kind, found in record["kinds"].items())
    print(
        *fork,
        f"line {record['infill_bits_per_byte']['mean']:.3f} gain {record['infill_gain']['mean']:+.3f}",
        gains,
        f"causal {record['causal_bits_per_byte']['mean']:.3f} format {record['format_ok']['mean']:.2f} "
        f"exact {record['line_exact_match']['mean']:.2f} {seconds:.0f} s",
        flush=True,
    )


def main(args: Case) -> None:
    enable_compilation_cache()
    base, tokenizer, info = load_model(args.checkpoint)
    corpus = sources.load(args.data)
    tokens = encode(tokenizer, (sources.load(args.train_data) if args.train_data else corpus).train)
    lines, threes, kinds = cut_rows(args, base, tokenizer, corpus.validation)

    def measured(model: Decoder, inputs_eos: bool) -> dict[str, Any]:
        found = measure(
            *(model, tokenizer, corpus.validation, lines, threes),
            seq_len=min(base.config.seq_len, 256),
            n_decoded=args.n_decoded,
            inputs_eos=inputs_eos,
        )
        return {
            "mode": found.infill_mode,
            **{name: estimate._asdict() for name, estimate in found.estimates().items()},
            "kinds": {k: gain(model, tokenizer, rows, ("none", "nlu", "nlg"), inputs_eos) for k, rows in kinds.items()},
        }

    grid = list(itertools.product(args.batches, args.mixtures, args.peaks, args.seeds))
    results = []
    for fork in [*([None] if args.base else []), *grid][args.part[0] :: args.part[1]]:
        started = time.monotonic()
        if fork is None:
            record = measured(base, info.inputs_eos)
        else:
            shape, mixture, peak, seed = fork
            n_rows, seq_len, n_steps = map(int, shape.split("x"))
            data = DataConfig(args.data, mixture, seq_len=seq_len, batch_size=n_rows, joint_budget=True)
            model, loss = train(base, tokenizer, tokens, data, peak, n_steps, seed)
            eos = any(d.inputs_eos for d in ul2r.mixture(mixture))
            record = {"mixture": mixture, "peak": peak, "rows": n_rows, "seq_len": seq_len, "n_steps": n_steps}
            record |= {"seed": seed, "loss": loss, **measured(model, eos)}
            if args.export:
                run = {"n_steps": n_steps, "seed": seed, "data": {"mixture": mixture}}
                folder = args.export / f"{mixture}_{shape}_{peak}_{seed}"
                export(folder, model, tokenizer, run, CheckpointInfo(inputs_eos=eos, gaps_trained=mixture != "causal"))
        results.append(record)
        write_atomically(args.out, json.dumps(results, indent=1) + "\n")
        show(fork or ("base",), record, time.monotonic() - started)


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
