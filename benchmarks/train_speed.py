"""Tokens per second of a training step, beside transformers (`peers/hf.py`): the same shape, batch and AdamW, fp32.

    python benchmarks/train_speed.py --config tiny --rounds 7

Contenders take turns, each in its own process, with every core. Peers need: pip install torch transformers
"""

import importlib.util
from dataclasses import dataclass
from typing import Literal

import tyro
from peers import clock
from peers.shapes import ADAMW, SHAPES, Shape, random_rows

Contender = Literal["hf_compile", "hf", "upalm"]


@dataclass(frozen=True)
class Case:
    config: Literal["smoke", "tiny", "small", "smollm2"] = "tiny"
    rounds: int = 7
    only: tuple[Contender, ...] = ("hf_compile", "upalm")
    """Who takes part. Ratios are to the first."""
    worker: str = ""
    """Be this contender: the script sets it for the processes that it starts."""


def build(case: Case):
    shape = SHAPES[case.config]
    rows = random_rows(shape.batch_size, shape.seq_len + 1, shape.vocab_size)
    if case.worker == "upalm":
        return upalm_step(shape, rows)
    from peers import hf

    step = hf.train_step(shape, rows, "whole" if case.worker == "hf_compile" else "no")
    return lambda: {"loss": step().item()}


def upalm_step(shape: Shape, rows):
    import jax
    import optax

    from upalm.model.palm import Decoder
    from upalm.training.step import TrainState, train_step

    batches = causal_batches(rows)
    model = Decoder(model_config(shape), key=jax.random.key(0))
    optimizer = optax.adamw(**ADAMW)
    states = [TrainState(model, jax.jit(optimizer.init)(model))]

    def step() -> dict[str, float]:
        states[0], reported = train_step(states[0], batches, optimizer=optimizer, n_denoisers=1)
        return {"loss": float(reported.sums.nll.sum() / reported.sums.weight.sum())}

    return step


def causal_batches(rows):
    """One microbatch of causal rows, each a single segment, from tokens [B, T + 1]."""
    import jax

    from upalm.training.step import microbatched
    from upalm.ul2r.rows import Batch

    batch = Batch.empty(len(rows), rows.shape[1] - 1)
    batch.input_tokens[:], batch.target_tokens[:] = rows[:, :-1], rows[:, 1:]
    batch.loss_weights[:], batch.segment_ids[:] = 1, 1
    batch.positions[:] = range(rows.shape[1] - 1)
    return jax.tree.map(jax.numpy.asarray, microbatched(batch, 1))


def model_config(shape: Shape):
    from upalm.model.config import ModelConfig

    return ModelConfig(
        vocab_size=shape.vocab_size,
        d_model=shape.d_model,
        n_layers=shape.n_layers,
        n_heads=shape.n_heads,
        d_head=shape.d_head,
        d_ff=shape.d_ff,
        seq_len=2 * shape.seq_len,
        n_kv_heads=shape.n_kv_heads,
        block=shape.block,
    )


def main(case: Case) -> None:
    if case.worker:
        if case.worker == "upalm":
            from upalm.cli.huge_pages import use_huge_pages

            use_huge_pages()  # as the `upalm` command does
        return clock.serve(lambda: build(case))
    names = case.only if importlib.util.find_spec("torch") else ("upalm",)
    records = clock.race(clock.workers(__file__, names), case.rounds)
    shape, base = SHAPES[case.config], records[names[0]].median()
    header = ("contender", "tokens/s", "ratio", "range, s", "peak memory, MB", "first step after, s", "loss")
    clock.print_table(
        header,
        [
            (
                name,
                f"{shape.batch_size * shape.seq_len / record.median():.0f}",
                f"{base / record.median():.2f}",
                f"{min(record.values()):.3f} to {max(record.values()):.3f}",
                f"{record.median('peak_mb'):.0f}",
                f"{record.first_seconds:.1f}",
                f"{record.samples[-1]['loss']:.4f}",
            )
            for name, record in records.items()
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
