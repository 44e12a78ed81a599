"""Measure forks of a base over mixtures, rates, batches and steps, by the measures of the quickstart.

    python benchmarks/fork_grid.py --out grid.json
    python benchmarks/fork_grid.py --out grid.json --mixtures ul2r_eos causal --peaks 1e-2 --batches 4x512x220 8x256x220
    python benchmarks/fork_grid.py --out part1.json --part 1 4      (one of four processes that share the grid)

The rate is an input of the step, so all forks of one batch shape run one compiled program. Each fork is a line of the
result as soon as it is measured. Kinds of gaps beside the quickstart's lines: a few words within a line, a new
word (`new_name`), and three lines. A mixture is a name, or denoisers as `upalm.ul2r.mixture` reads them.
"""

import argparse
import itertools
import json
import random
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import optax

import upalm
from upalm import ul2r
from upalm.checkpoints.folder import export, load_model
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data import sources
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokenizer import Tokenizer
from upalm.data.tokens import Tokens, encode
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.infilling import scores
from upalm.evals.infilling.gaps import Gap
from upalm.evals.infilling.held_out import cut_gaps, cut_kinds, measure
from upalm.inference.config import Attention, Mode
from upalm.inference.prompts import prompt_ids
from upalm.model.palm import Decoder
from upalm.training.loss import loss_fn
from upalm.training.optim import Schedule, scale_by_layer_rms

N_BLOCK_LINES = 3
LEFT_ONLY: tuple[tuple[Mode, Attention], ...] = (("none", "causal"), ("none", "prefix"), ("s2s", "prefix"))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=upalm.PALM_TINY)
    parser.add_argument("--data", default=sources.STDLIB)
    parser.add_argument("--train-data", help="text of the forks; --data if not given")
    parser.add_argument("--mixtures", nargs="+", default=["ul2r_eos", "ul2r_infill", "ul2", "causal"])
    parser.add_argument("--peaks", nargs="+", type=float, default=[3e-3, 1e-2, 2e-2])
    parser.add_argument("--batches", nargs="+", default=["8x256x280"], help="ROWSxTOKENSxSTEPS")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--n-rows", type=int, default=160)
    parser.add_argument("--n-decoded", type=int, default=48)
    parser.add_argument("--part", nargs=2, type=int, default=(0, 1))
    parser.add_argument("--export", type=Path, help="folder for the weights of each fork")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    enable_compilation_cache()
    base, tokenizer, info = load_model(args.checkpoint)
    corpus = sources.load(args.data)
    held_out = corpus.validation
    longest = min(base.config.seq_len, 256)
    lines, threes = cut_gaps(held_out, tokenizer, longest, args.n_rows, inputs_eos=True)
    further = cut_kinds(held_out, tokenizer, longest, threes, inputs_eos=True)
    kinds = {"words": further["few_words"], "new_name": further["new_name"], "block": cut_blocks(held_out, args.n_rows)}
    kinds = {
        kind: [row for row in rows if len(prompt_ids(tokenizer, row.parts, "nlg", True)) + 80 < base.config.seq_len]
        for kind, rows in kinds.items()
    }
    tokens = encode(tokenizer, (sources.load(args.train_data) if args.train_data else corpus).train)

    def measured(model: Decoder, mixture: str | None) -> dict:
        inputs_eos = any(d.inputs_eos for d in ul2r.mixture(mixture)) if mixture else info.inputs_eos
        found = measure(
            *(model, tokenizer, held_out, lines, threes),
            seq_len=longest,
            n_decoded=args.n_decoded,
            inputs_eos=inputs_eos,
        )
        others = {k: gain(model, tokenizer, rows, ("none", "nlu", "nlg"), inputs_eos) for k, rows in kinds.items()}
        fills = [
            {"before": row.parts[0][-160:], "missing": row.spans[0], "filled": found.prediction(i)}
            for i, row in enumerate(lines[: min(8, args.n_decoded)])
        ]
        return {
            "mode": found.infill_mode,
            **{name: estimate._asdict() for name, estimate in found.estimates().items()},
            "kinds": others,
            "fills": fills,
        }

    grid = list(itertools.product(args.batches, args.mixtures, args.peaks, args.seeds))
    grid = [None, *grid][args.part[0] :: args.part[1]]
    results = []
    for fork in grid:
        started = time.monotonic()
        if fork is None:
            record = {"base": str(args.checkpoint), **measured(base, None)}
        else:
            shape, mixture, peak, seed = fork
            n_rows, seq_len, n_steps = map(int, shape.split("x"))
            data = DataConfig(args.data, mixture, seq_len=seq_len, batch_size=n_rows, joint_budget=True)
            model, loss = train(base, tokenizer, tokens, data, peak, n_steps, seed)
            trained = time.monotonic() - started
            record = {"mixture": mixture, "peak": peak, "rows": n_rows, "seq_len": seq_len, "n_steps": n_steps}
            record |= {"seed": seed, "loss": loss, "train_seconds": trained, **measured(model, mixture)}
            if args.export:
                eos = any(d.inputs_eos for d in ul2r.mixture(mixture))
                run = {"n_steps": n_steps, "seed": seed, "data": {"mixture": mixture}}
                folder = args.export / f"{mixture}_{shape}_{peak}_{seed}"
                export(folder, model, tokenizer, run, CheckpointInfo(inputs_eos=eos, gaps_trained=mixture != "causal"))
        record["seconds"] = time.monotonic() - started
        results.append(record)
        args.out.write_text(json.dumps(results, indent=1) + "\n")
        kinds_shown = " ".join(f"{k} {v['gain']['mean']:+.3f}" for k, v in record["kinds"].items())
        print(
            *(fork or ("base",)),
            f"line {record['infill_bits_per_byte']['mean']:.3f} gain {record['infill_gain']['mean']:+.3f}",
            kinds_shown,
            f"causal {record['causal_bits_per_byte']['mean']:.3f} format {record['format_ok']['mean']:.2f} "
            f"exact {record['line_exact_match']['mean']:.2f} {record['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
