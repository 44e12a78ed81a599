"""Source tokens per second of the loader, through Grain from ArrayRecord shards, beside other implementations.

cd benchmarks; export PYTHONPATH=.
python $UPALM_BENCH/data_peers.py --plugin data_speed:make --plugin-name upalm --only upalm,t5_seqio_packed
python data_speed.py                                     # 0, 1 and 2 loader processes

UPALM_BENCH holds `data_peers.py`, which has the peers, the clock and the options (`--help`). UPALM_MIXTURE chooses the
mixture (ul2r). No batch is made ahead of the clock: Grain reads without threads.
"""

import os
import tempfile
import time
from itertools import islice

import grain
import numpy as np
from etils import epath

from upalm.data import shards
from upalm.data import tokens as tokens_module
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.ul2r.symbols import Symbols

MIXTURE = os.environ.get("UPALM_MIXTURE", "ul2r")
V = 32_000
HASH = "benchmark"
SOURCE = ("count_below", V, 2)  # ids of the documents; the clock stands while they are counted


def loader(docs, seq_len, batch_size, n_workers=0):
    """Documents written to shards, and read from them."""
    folder = epath.Path(tempfile.mkdtemp())
    blocks = list(shards._cut(tokens_module.Tokens.concatenate(docs)))
    manifest = shards.Manifest(1, HASH, V + 200, "<u2", False, "benchmark", complete=True)
    manifest.shards = [shards._write(folder, "train-00000.array_record", "train", blocks, "<u2")]
    manifest.write(folder)
    symbols = Symbols(tuple(range(V + 199, V + 99, -1)), {"nlu": (V,), "nlg": (V + 1,), "s2s": (V + 2,)})
    config = DataConfig(mixture=MIXTURE, seq_len=seq_len, batch_size=batch_size, n_workers=n_workers)
    return Loader(shards.Shards(str(folder), "train", HASH), config, symbols, seed=0)


def make(docs, seq_len, batch_size, cfg):
    """For data_peers.py."""
    made = loader(docs, seq_len, batch_size)
    steps = grain.MapDataset.range(1 << 40).map(made.batch)
    for batch in steps.to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)):
        found = dict(tokens=batch.target_tokens, valid=batch.segment_ids, loss=batch.loss_weights)
        extra = [batch.input_tokens, batch.positions, batch.prefix_mask, batch.denoiser_ids]
        yield found | {"extra": extra}, SOURCE, 0


def main():
    rng = np.random.default_rng(0)
    docs = [rng.integers(3, V, n) for n in np.clip(rng.lognormal(np.log(600) - 0.5, 1.0, 4000), 16, 32768).astype(int)]
    for n_workers in (0, 1, 2):
        made = loader(docs, 1024, 16, n_workers)
        batches = made.batches(0, 1 << 40)  # of which the first 650: processes take seconds to end
        for _ in islice(batches, 50):  # processes start, buffers fill
            pass
        tokens, start = 0, time.perf_counter()
        for batch in islice(batches, 600):
            tokens += int(((batch.target_tokens > 2) & (batch.target_tokens < V)).sum())
        seconds = time.perf_counter() - start
        print(f"{n_workers} loader processes: {tokens / seconds / 1e6:.1f} M source tokens/s")
        batches.close()


if __name__ == "__main__":
    main()
