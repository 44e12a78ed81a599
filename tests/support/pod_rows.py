"""Compare the rows of every mesh with those of one device: python -m support.pod_rows DATA PORT N_PROCESSES PROCESS."""

import sys

import numpy as np
from jax.experimental import multihost_utils

from upalm.data.config import DataConfig
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.data.loader import Loader
from upalm.data.shards import Shards
from upalm.distributed.processes import ProcessConfig
from upalm.distributed.sharding import MeshConfig, rows_here, to_devices


def main(data: str, port: str, n_processes: int, process_id: int) -> None:
    """Join the other processes, and check every batch on every mesh."""
    ProcessConfig(f"127.0.0.1:{port}", n_processes, process_id).connect()
    tokenizer = load_tokenizer(data)
    shards = Shards(data, "train", tokenizer.hash)
    config = DataConfig(seq_len=64, batch_size=16, batch_ramp=((2, 32),))
    whole = Loader(shards, config, tokenizer.symbols, seed=0)
    for sizes in ((1, 8, 1), (2, 2, 2), (4, 1, 2), (1, 1, 8)):
        mesh = MeshConfig(*sizes).build()
        for accumulation in (1, 2):
            rows = {size: rows_here(mesh, size, accumulation) for size in (16, 32)}
            loader = Loader(shards, config, tokenizer.symbols, seed=0, rows=rows)
            for step in (0, 1, 2):
                size = config.batch_size_at(step)
                batch = to_devices(mesh, loader.batch(step), rows[size], size, accumulation)
                for array, expected in zip(batch, whole.batch(step), strict=True):
                    assert array.shape[0] == accumulation
                    gathered = np.asarray(multihost_utils.process_allgather(array, tiled=True))
                    np.testing.assert_array_equal(gathered.reshape(expected.shape), expected)
            n_rows = sum(len(r) for r in rows.values())
            assert n_rows == 48 // min(n_processes, sizes[0] * sizes[1]), (sizes, n_rows)  # no more than it needs


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
