"""Measure whether a model ends its answers: what EOS costs where an answer ends, in rows as in training and in gaps.

    python benchmarks/answer_ends.py --json docs/results/answer_ends.json \\
        --checkpoints before=before/upalm_tiny now=upalm/assets/upalm_tiny
"""

import json
from dataclasses import dataclass
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import tyro

from upalm import ul2r
from upalm.checkpoints.config_json import description
from upalm.checkpoints.folder import load_model
from upalm.data import sources
from upalm.data.config import DataConfig
from upalm.data.loader import Loader
from upalm.data.tokens import encode
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.bootstrap import mean
from upalm.evals.infilling import scores
from upalm.evals.infilling.held_out import MAX_SPAN_TOKENS, cut_gaps
from upalm.files import write_atomically
from upalm.model.palm import Decoder
from upalm.ul2r.rows import Batch


@dataclass(frozen=True)
class Case:
    """Models, and the file for the numbers."""

    checkpoints: tuple[str, ...]
    """name=FOLDER of weights that were trained on gaps."""
    json: Path
    """File for the numbers."""
    n_rows: int = 96
    """Held-out lines, and rows of the mixture."""
    seq_len: int = 256
    """Tokens per row, and of the longest prompt with its answer."""


@eqx.filter_jit
def token_nll(model: Decoder, batch: Batch) -> jax.Array:
    log_probs = jax.nn.log_softmax(model(batch))
    return -jnp.take_along_axis(log_probs, batch.target_tokens[..., None], axis=-1)[..., 0]


def eos_nll(model: Decoder, loader: Loader, eos_id: int, n_rows: int) -> np.ndarray:
    """Cost in nats of each EOS that ends an answer with gaps, in rows of a mixture."""
    with_gaps = [i for i, denoiser in enumerate(loader.mixture) if denoiser.n_sentinels(loader.config.seq_len)]
    costs = []
    for batch in loader.batches(0, n_rows // loader.config.batch_size):
        following = np.pad(batch.segment_ids[:, 1:], ((0, 0), (0, 1)))
        ends = (batch.target_tokens == eos_id) & (batch.loss_weights > 0) & (following != batch.segment_ids)
        costs.append(np.asarray(token_nll(model, batch))[ends & np.isin(batch.denoiser_ids, with_gaps)])
    return np.concatenate(costs)


def main(args: Case) -> None:
    enable_compilation_cache()
    held_out, results = sources.load("stdlib").validation, {}
    for name, _, folder in (x.partition("=") for x in args.checkpoints):
        model, tokenizer, info = load_model(Path(folder))
        mixture = ul2r.mixture(", ".join(description(Path(folder))["run"]["denoisers"]))
        data = DataConfig("stdlib", mixture, seq_len=args.seq_len, batch_size=16, joint_budget=True)
        loader = Loader(encode(tokenizer, held_out), data, tokenizer.symbols, seed=0)
        in_rows = eos_nll(model, loader, tokenizer.symbols.eos_id, args.n_rows)
        lines, words = cut_gaps(held_out, tokenizer, args.seq_len, args.n_rows, inputs_eos=True)
        found = {"rows": mean(in_rows)}
        for kind, rows in (("line", lines), ("several", words)):
            scored = scores.score_spans(model, tokenizer, rows, "nlg", info.inputs_eos)
            free = scores.decode_rows(
                *(model, tokenizer, rows, "nlg"),
                max_new_tokens=MAX_SPAN_TOKENS,
                constrained=False,
                inputs_eos=info.inputs_eos,
            )
            found |= {
                f"{kind}/closing_nll": scored.estimates()["closing_nll"],
                f"{kind}/format_ok": mean(free.format_ok),
            }
        results[name] = {key: estimate._asdict() for key, estimate in found.items()}
        print(name, {key: round(x["mean"], 3) for key, x in results[name].items()}, flush=True)
    write_atomically(args.json, json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
