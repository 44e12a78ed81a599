"""Greedy tokens per second with a key-value cache, beside transformers (`peers/hf.py`): the same shape, fp32.

    python benchmarks/generate_speed.py --config small --batch 1 --rounds 7

Each contender decodes `new` tokens and one token, so that the difference is free of the prefill. The bound is the time
to read the weights once per step, at the bandwidth of a matrix-vector product of numpy that this script measures.
Contenders take turns, each in its own process. The peer needs: pip install torch transformers
"""

import importlib.util
import time
from dataclasses import dataclass
from typing import Literal

import numpy as np
import tyro
from peers import clock
from peers.shapes import SHAPES, Shape, random_rows
from train_speed import model_config

Contender = Literal["hf", "upalm"]


@dataclass(frozen=True)
class Case:
    config: Literal["smoke", "tiny", "small", "smollm2"] = "small"
    batch: int = 1
    prompt: int = 128
    """Tokens of each prompt."""
    new: int = 128
    """Tokens decoded after it."""
    rounds: int = 7
    only: tuple[Contender, ...] = ("hf", "upalm")
    """Who takes part. Ratios are to the first."""
    worker: str = ""
    """Be this contender: the script sets it for the processes that it starts."""


def build(case: Case):
    shape, (name, n_new) = SHAPES[case.config], case.worker.split(":")
    prompt = random_rows(case.batch, case.prompt, shape.vocab_size)
    if name == "upalm":
        return upalm_decode(shape, prompt, int(n_new))
    from peers import hf

    return hf.generate(shape, prompt, int(n_new))


def upalm_decode(shape: Shape, prompt: np.ndarray, n_new: int):
    import jax

    from upalm.inference.decoding import DecodingModel, Task, decode
    from upalm.model.palm import Decoder

    model = DecodingModel.of(Decoder(model_config(shape), key=jax.random.key(0)))
    tasks = [Task(row, n_new) for row in prompt]

    def call() -> None:
        completions = [completion for samples in decode(model, tasks) for completion in samples]
        assert all(len(completion.tokens) == n_new for completion in completions), "an answer ended early"

    return call


def bytes_per_second(n_rounds: int = 20) -> float:
    """The best of several reads of 256 MB."""
    matrix, vector = np.ones((8192, 8192), np.float32), np.ones(8192, np.float32)
    seconds = []
    for _ in range(n_rounds):
        started = time.perf_counter()
        matrix @ vector
        seconds.append(time.perf_counter() - started)
    return matrix.nbytes / min(seconds)


def main(case: Case) -> None:
    if case.worker:
        if case.worker.startswith("upalm"):
            from upalm.cli.huge_pages import use_huge_pages

            use_huge_pages()  # as the `upalm` command does
        return clock.serve(lambda: build(case))
    names = case.only if importlib.util.find_spec("torch") else ("upalm",)
    entries = tuple(f"{name}:{n_new}" for name in names for n_new in (1, case.new))
    records = clock.race(clock.workers(__file__, entries), case.rounds)
    shape, bandwidth = SHAPES[case.config], bytes_per_second()
    bound = case.batch * bandwidth / shape.weight_bytes()
    megabytes, gigabytes_per_second = shape.weight_bytes() / 1e6, bandwidth / 1e9
    print(f"weights {megabytes:.0f} MB at {gigabytes_per_second:.1f} GB/s: at most {bound:.0f} tokens/s of decoding")
    base, rows = records[f"{names[0]}:{case.new}"].median(), []
    for name in names:
        prefill, whole = records[f"{name}:1"].median(), records[f"{name}:{case.new}"].median()
        decoding = case.batch * (case.new - 1) / (whole - prefill)
        seconds = records[f"{name}:{case.new}"].values()
        rows.append(
            (
                name,
                f"{case.batch * case.new / whole:.0f}",
                f"{base / whole:.2f}",
                f"{decoding:.0f}",
                f"{decoding / bound:.0%}",
                f"{1e3 * prefill:.0f}",
                f"{records[f'{name}:{case.new}'].median('peak_mb'):.0f}",
                f"{min(seconds):.2f} to {max(seconds):.2f}",
            )
        )
    header = (
        "contender",
        "tokens/s",
        "ratio",
        "decoding alone, tokens/s",
        "of the bound",
        "first token, ms",
        "peak, MB",
        "seconds",
    )
    clock.print_table(header, rows)


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
