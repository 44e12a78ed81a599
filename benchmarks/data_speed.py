"""Source tokens per second of the loader on one core, through Grain from ArrayRecord, beside T5's preprocessors.

    python benchmarks/data_speed.py --seq-len 1024 --mixture ul2r_split_x --only t5_seqio upalm
    python benchmarks/data_speed.py --seq-len 1024 --mixture ul2r
    python benchmarks/data_speed.py --workers 0 1 2           # loader processes in place of the reading thread

A source token is one of the documents' own: sentinels, mode tokens, EOS and padding do not count. No batch is made
ahead of the clock, since Grain reads without threads here. Contenders take turns, each in its own process; counting is
not timed. The peer makes `ul2r_split_x` and needs: pip install t5 seqio tensorflow
"""

import itertools
import json
import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro
from peers import clock

from upalm.data import shards
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokenizer import Tokenizer
from upalm.ul2r.symbols import Symbols

VOCAB_SIZE = 32_000  # of the documents; their ids begin after PAD, EOS and UNK
FIRST_ID = 3
MODES = {"nlu": (VOCAB_SIZE,), "nlg": (VOCAB_SIZE + 1,), "s2s": (VOCAB_SIZE + 2,)}
SENTINELS = tuple(range(VOCAB_SIZE + 199, VOCAB_SIZE + 99, -1))
SPLIT_X = [  # mode, mean span, rate, weight: `ul2r_split_x`
    (VOCAB_SIZE, 3.0, 0.15, 0.25),
    (VOCAB_SIZE + 1, 32.0, 0.15, 0.125),
    (VOCAB_SIZE + 1, 3.0, 0.5, 0.125),
    (VOCAB_SIZE + 2, None, 0.5, 0.5),
]


@dataclass(frozen=True)
class Case:
    seq_len: int = 1024
    batch: int = 16
    mixture: str = "ul2r"
    only: tuple[Literal["t5_seqio", "upalm"], ...] = ("upalm",)
    """Who takes part. Ratios are to the first."""
    seconds: float = 5.0
    """Length of a timed stretch."""
    rounds: int = 3
    workers: tuple[int, ...] = ()
    """Compare these numbers of loader processes instead, on all cores."""
    worker: str = ""
    """Be this contender: the script sets it for the processes that it starts."""


def make_documents(n: int = 4000) -> list[np.ndarray]:
    """Documents of lognormal length, 589 on average after clipping."""
    rng = np.random.default_rng(0)
    lengths = np.clip(rng.lognormal(np.log(600) - 0.5, 1.0, n), 16, 32768).astype(int)
    return [rng.integers(FIRST_ID, VOCAB_SIZE, length) for length in lengths]


class Characters(Tokenizer):
    """One character per id, so that a corpus of ids passes through files of text."""

    START = 0x20000  # a block of ideographs without gaps

    def __init__(self):
        super().__init__()
        self.vocab_size, self.symbols = VOCAB_SIZE + 200, Symbols(SENTINELS, MODES)
        self.files = {"characters.txt": b"an id is the code point less 0x20000"}

    def encode(self, text: str) -> list[int]:
        return [ord(character) - self.START for character in text]

    def encode_documents(self, texts: list[str]) -> list[list[int]]:
        return [self.encode(text) for text in texts]

    def _decode_text(self, ids: list[int]) -> str:
        return "".join(chr(i + self.START) for i in ids)


def build_loader(folder: Path, case: Case, n_workers: int) -> Loader:
    """Shards of the documents, and the loader of this case."""
    tokenizer = Characters()
    with open(folder / "documents.jsonl", "w", encoding="utf-8") as file:
        for document in make_documents():
            file.write(json.dumps({"text": tokenizer.decode(document)}) + "\n")
    shards.build(str(folder / "documents.jsonl"), str(folder / "shards"), tokenizer)
    config = DataConfig(mixture=case.mixture, seq_len=case.seq_len, batch_size=case.batch, n_workers=n_workers)
    source = shards.Shards(str(folder / "shards"), "train", tokenizer.hash)
    return Loader(source, config, tokenizer.symbols, seed=0)


def upalm_batches(case: Case):
    """Target tokens of batch after batch, on the thread that asks for them."""
    import grain

    with tempfile.TemporaryDirectory() as folder:
        loader = build_loader(Path(folder), case, 0)
        steps = grain.MapDataset.range(1 << 40).map(loader.batch)
        for batch in steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)):
            yield batch.target_tokens


def t5_batches(case: Case):
    """Target tokens of batch after batch, by T5's preprocessors and seqio."""
    from peers import t5_seqio

    if case.mixture != "ul2r_split_x":
        raise SystemExit("t5_seqio makes ul2r_split_x: add --mixture ul2r_split_x.")
    return t5_seqio.rows(make_documents(), SPLIT_X, VOCAB_SIZE + 200, case.seq_len, case.batch)


def stretch(batches, seconds: float):
    """A call that takes batches for some seconds, and counts afterwards."""

    def call() -> dict[str, float]:
        taken, started = [], time.perf_counter()
        while time.perf_counter() - started < seconds:
            taken.append(next(batches))
        elapsed = time.perf_counter() - started
        n_source = sum(int(((rows >= FIRST_ID) & (rows < VOCAB_SIZE)).sum()) for rows in taken)
        n_full = sum(int((rows != 0).sum()) for rows in taken)
        return {"rate": n_source / elapsed, "full": n_full / sum(rows.size for rows in taken)}

    return call


def compare_workers(case: Case) -> None:
    """Loader processes, which need seconds to start: the first batches are not timed."""
    for n_workers in case.workers:
        with tempfile.TemporaryDirectory() as folder:
            batches = build_loader(Path(folder), case, n_workers).batches(0, 1 << 40)
            for _ in itertools.islice(batches, 50):
                pass
            rate = stretch((batch.target_tokens for batch in batches), case.seconds)()["rate"]
            print(f"{n_workers} loader processes: {rate / 1e6:.1f} M source tokens/s", flush=True)


def main(case: Case) -> None:
    if case.workers:
        return compare_workers(case)
    if case.worker:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        batches = {"upalm": upalm_batches, "t5_seqio": t5_batches}[case.worker]
        return clock.serve(lambda: stretch(batches(case), case.seconds))
    records = clock.race(clock.workers(__file__, case.only), case.rounds)
    base = records[case.only[0]].median("rate")
    header = ("contender", "M source tokens/s", "range", "ratio", "rows full")
    clock.print_table(
        header,
        [
            (
                name,
                f"{record.median('rate') / 1e6:.2f}",
                f"{min(record.values('rate')) / 1e6:.2f} to {max(record.values('rate')) / 1e6:.2f}",
                f"{record.median('rate') / base:.2f}",
                f"{record.median('full'):.1%}",
            )
            for name, record in records.items()
        ],
    )


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
