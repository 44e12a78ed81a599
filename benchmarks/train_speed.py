"""Tokens per second of a training step beside other implementations, interleaved in one run.

UPALM_BENCH=DIR python benchmarks/train_speed.py --config tiny --only hf_cohere_compile,upalm --base hf_cohere_compile

DIR holds `train_peers.py`, which has the peers, the clock and the options (`--help`).
"""

import os
import sys

sys.path.insert(0, os.environ["UPALM_BENCH"])
import train_peers


def upalm(dims, tokens):
    import jax
    import optax

    from upalm.model.palm import Decoder
    from upalm.training.step import TrainState, microbatched, train_step
    from upalm.ul2r.rows import Batch

    batch = Batch.empty(tokens.shape[0], tokens.shape[1] - 1)
    batch.input_tokens[:], batch.target_tokens[:] = tokens[:, :-1], tokens[:, 1:]
    batch.loss_weights[:], batch.segment_ids[:] = 1, 1
    batch.positions[:] = range(batch.positions.shape[1])
    batches = jax.tree.map(jax.numpy.asarray, microbatched(batch, 1))

    model = Decoder(config(dims), key=jax.random.key(0))
    rate, betas, eps, decay = train_peers.LR, train_peers.BETAS, train_peers.EPS, train_peers.DECAY
    optimizer = optax.adamw(rate, *betas, eps=eps, weight_decay=decay)
    hold = [TrainState(model, jax.jit(optimizer.init)(model))]

    def step():
        hold[0], reported = train_step(hold[0], batches, optimizer=optimizer, n_denoisers=1)
        return float(reported.sums.nll.sum() / reported.sums.weight.sum())

    step.parameters = train_peers.count(model)
    return step


def config(dims):
    from upalm.model.config import ModelConfig

    return ModelConfig(
        vocab_size=dims["vocab"],
        d_model=dims["d_model"],
        n_layers=dims["layers"],
        n_heads=dims["heads"],
        d_head=dims["head_dim"],
        d_ff=dims["d_ff"],
        seq_len=2 * dims["seq"],
    )


def prepare_worker(argv):
    """Peers are started as `--worker NAME[:N]`; ours runs as the `upalm` command does."""
    if any(word.split(":")[0] == "upalm" for flag, word in zip(argv, argv[1:], strict=False) if flag == "--worker"):
        from upalm.cli.huge_pages import use_huge_pages

        use_huge_pages()


if __name__ == "__main__":
    prepare_worker(sys.argv)
    train_peers.CONTENDERS["upalm"] = upalm
    train_peers.__file__ = __file__  # its workers are started from this file
    train_peers.main()
