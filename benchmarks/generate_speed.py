"""Greedy tokens per second with a cache beside other implementations, interleaved in one run.

UPALM_BENCH=DIR python benchmarks/generate_speed.py --config small --batch 1 --only hf_cohere,upalm

DIR holds `generate_peers.py`, which has the peers, the clock and the options (`--help`).
"""

import os
import sys

sys.path.insert(0, os.environ["UPALM_BENCH"])
import generate_peers
from train_speed import config, prepare_worker


def upalm(dims, prompt, new):
    import jax

    from upalm.inference.decoding import DecodingModel, Task, decode
    from upalm.model.palm import Decoder

    model = DecodingModel.of(Decoder(config(dims), key=jax.random.key(0)))
    tasks = [Task(row, new) for row in prompt]

    def generate():
        found = [sample for samples in decode(model, tasks) for sample in samples]
        assert all(len(c.tokens) == new for c in found), "ended early: the comparison would not be fair"
        return int(sum(c.tokens.sum() for c in found))

    return generate


if __name__ == "__main__":
    prepare_worker(sys.argv)
    generate_peers.CONTENDERS["upalm"] = upalm
    generate_peers.__file__ = __file__
    generate_peers.main()
