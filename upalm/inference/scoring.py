"""Log-probabilities of targets, and of candidate continuations.

Dims: B batch rows, N target positions, Q prompts, R rows of T continuation tokens, D d_model, V vocabulary.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from upalm import ul2r
from upalm.distributed.sharding import split_rows
from upalm.inference.config import Attention, check_at_least, check_choice
from upalm.inference.decoding import (
    DecodingModel,
    Ids,
    bucket,
    check_length,
    left_padded,
    prefill,
    prompt_positions,
    round_up,
)
from upalm.model.attention import KeyRange, KeyValue
from upalm.model.layers import rotary
from upalm.model.palm import Decoder
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import BOS_ID

MAX_LOGITS = 1 << 27
"""Logits of a batch: half a gigabyte in float32."""
SHORT_TARGET = 64
"""Tokens up to which a target has logits for its own positions alone."""
MAX_POSITIONS = 4096
"""Positions of a batch: of activations, and of scores of attention where no kernel takes the shapes."""

# --- Targets --------------------------------------------------------------------------------------


class Score(NamedTuple):
    """Log-probability of every token of a target."""

    log_probs: np.ndarray
    """Per token, in nats."""
    is_best: np.ndarray
    """Per token: no other was likelier."""

    @property
    def log_prob(self) -> float:
        """Log-probability of the whole target, in nats."""
        return float(self.log_probs.sum())


def score(
    model: Decoder,
    examples: Sequence[tuple[Ids, Ids]],
    *,
    attention: Attention = "prefix",
    bos_id: int = BOS_ID,
    batch_size: int = 16,
) -> list[Score]:
    """Score (prompt ids, target ids) pairs, teacher-forced, in batches of `batch_size` or fewer.

    Long rows and targets make batches of fewer rows: see `MAX_POSITIONS` and `MAX_LOGITS`.

    Raises:
        ValueError: an empty target, a pair longer than the model's rows, an unknown attention or a batch of no rows.
    """
    check_choice("attention", attention, get_args(Attention))
    check_at_least("batch_size", batch_size, 1)
    for i, (prompt, target) in enumerate(examples):
        if len(target) == 0:
            raise ValueError(f"example {i} has an empty target: there is nothing to score.")
        check_length(model.config, len(prompt) + len(target), f"example {i}")
    n_positions = [round_up(len(prompt) + len(target)) for prompt, target in examples]
    # a target is short, or its row has logits everywhere: two programs at most for each number of positions
    n_targets = [
        min(n, SHORT_TARGET) if len(target) <= SHORT_TARGET else n
        for n, (_, target) in zip(n_positions, examples, strict=True)
    ]
    n_rows = [
        max(1, min(batch_size, MAX_POSITIONS // n, MAX_LOGITS // (n_logits * model.config.vocab_size)))
        for n, n_logits in zip(n_positions, n_targets, strict=True)
    ]
    batches: list[list[int]] = []
    for i in sorted(range(len(examples)), key=lambda i: (n_targets[i], sum(map(len, examples[i])))):
        if not batches or len(batches[-1]) >= n_rows[i] or n_targets[batches[-1][0]] != n_targets[i]:
            batches.append([])
        batches[-1].append(i)
    scores: list[Score] = [Score(np.empty(0), np.empty(0))] * len(examples)
    for chosen in batches:
        longest = chosen[-1]  # its lengths alone make the shapes
        batch = Batch.empty(n_rows[longest], n_positions[longest])
        places = np.zeros((n_rows[longest], n_targets[longest]), np.int32)  # of the target; the rest is not read
        for b, i in enumerate(chosen):
            prompt, target = (np.asarray(x, np.int32) for x in examples[i])
            ul2r.write_segment(batch.row(b), 0, ul2r.Example(prompt, target), 1, 0, bos_id)
            places[b, : len(target)] = len(prompt) + np.arange(len(target))
        batch = batch if attention == "prefix" else batch.causal()
        columns = map(np.asarray, _score(model, batch, places))
        for i, *row in zip(chosen, *columns, strict=False):
            scores[i] = Score(*(x[: len(examples[i][1])].copy() for x in row))
    return scores


@jax.jit
def _score(
    model: Decoder, batch: Batch, places_BN: Int[Array, "B N"]
) -> tuple[Float[Array, "B N"], Bool[Array, "B N"]]:
    """Score some positions of each row: prompts are most of a row and need no logits."""
    x_BND = jnp.take_along_axis(model.hidden(batch), places_BN[..., None], 1)
    logits_BNV, targets_BN = model.logits(x_BND), jnp.take_along_axis(jnp.asarray(batch.target_tokens), places_BN, 1)
    target_logits_BN = jnp.take_along_axis(logits_BNV, targets_BN[..., None], -1)[..., 0]
    return target_logits_BN - jax.nn.logsumexp(logits_BNV, -1), target_logits_BN >= jnp.max(logits_BNV, -1)


# --- Continuations --------------------------------------------------------------------------------


MAX_PROMPTS, MAX_CONTINUATIONS = 64, 32
"""Rows of a prefill, and rows of continuations at once."""


class Likelihood(NamedTuple):
    """Log-probability of a continuation."""

    log_prob: float
    """In nats, summed over the tokens that count."""
    n_tokens: int
    is_greedy: bool
    """No other token was likelier, at any place."""


def rank(
    model: Decoder | DecodingModel,
    prompts: Sequence[Ids],
    continuations: Sequence[Sequence[Ids]],
    *,
    attention: Attention = "prefix",
    bos_id: int = BOS_ID,
    n_given: int = 0,
    tokens_per_batch: int = 4096,
) -> Iterator[tuple[int, list[Likelihood]]]:
    """Score the continuations of every prompt. Yields (number of the prompt, likelihoods), batch by batch.

    Args:
        model: for many calls, `DecodingModel.of(model)`.
        prompts: without BOS.
        continuations: of each prompt, any number.
        attention: what a prompt sees.
        bos_id: of the tokenizer.
        n_given: tokens at the beginning of every continuation that are fed and not counted, such as a sentinel.
        tokens_per_batch: prompt positions per batch, approximately.

    Raises:
        ValueError: a continuation without a token that counts, or one that with its prompt is longer than the
            model's rows.
    """
    model = DecodingModel.of(model)
    for i, (prompt, some) in enumerate(zip(prompts, continuations, strict=True)):
        for j, ids in enumerate(some):
            if len(ids) <= n_given:
                raise ValueError(f"continuation {j} of prompt {i} is empty: there is nothing to score.")
            check_length(model.config, len(prompt) + len(ids), f"prompt {i} with continuation {j}")

    by_shape: dict[tuple[int, int], list[int]] = {}
    for i, (prompt, some) in enumerate(zip(prompts, continuations, strict=True)):
        if some:
            shape = bucket(len(prompt)), 1 << (max(map(len, some)) - 1).bit_length()
            by_shape.setdefault(shape, []).append(i)
        else:
            yield i, []
    for (n_prompt, n_tokens), numbers in sorted(by_shape.items()):
        n_prompts = max(1, min(MAX_PROMPTS, tokens_per_batch // n_prompt))
        for first in range(0, len(numbers), n_prompts):
            batch = numbers[first : first + n_prompts]
            padded = [prompts[i] for i in batch] + [()] * (n_prompts - len(batch))
            n_positions = prompt_positions(padded, n_prompt, model.config)
            tokens, starts = split_rows(left_padded(padded, n_positions, bos_id), n_prompts)
            x_QD, caches = prefill(model, tokens, starts, max_new=0, attention=attention)
            prefilled = _Prefilled(model, x_QD, caches, starts)
            likelihoods = _rank_batch(prefilled, [continuations[i] for i in batch], n_tokens, n_given)
            yield from zip(batch, likelihoods, strict=True)


class _Prefilled(NamedTuple):
    model: DecodingModel
    x_QD: Float[Array, "Q D"]
    caches: list[KeyValue]
    starts_Q: Int[Array, " Q"]


def _rank_batch(
    prefilled: _Prefilled, continuations: Sequence[Sequence[Ids]], n_tokens: int, n_given: int
) -> list[list[Likelihood]]:
    """Score the continuations of prompts that are prefilled, in rows of `n_tokens`."""
    rows = [(q, ids) for q, some in enumerate(continuations) for ids in some]
    n_rows = max(1, min(MAX_CONTINUATIONS, MAX_LOGITS // (n_tokens * prefilled.model.config.vocab_size)))
    likelihoods: list[list[Likelihood]] = [[] for _ in continuations]
    for first in range(0, len(rows), n_rows):
        some = rows[first : first + n_rows]
        columns = map(np.asarray, _likelihoods(*prefilled, *_padded(some, n_rows, n_tokens, n_given)))
        for (q, ids), log_prob, is_greedy in zip(some, *columns, strict=False):
            likelihoods[q].append(Likelihood(float(log_prob), len(ids) - n_given, bool(is_greedy)))
    return likelihoods


def _padded(
    rows: Sequence[tuple[int, Ids]], n_rows: int, n_tokens: int, n_given: int
) -> tuple[Int[np.ndarray, " R"], Int[np.ndarray, "R T"], Bool[np.ndarray, "R T"]]:
    """Lay out rows: the prompt of each, its tokens, and which of them count."""
    prompts, tokens = np.zeros(n_rows, np.int32), np.zeros((n_rows, n_tokens), np.int32)
    counts = np.zeros((n_rows, n_tokens), bool)
    for r, (q, ids) in enumerate(rows):
        prompts[r], tokens[r, : len(ids)] = q, ids
        counts[r, n_given : len(ids)] = True
    return prompts, tokens, counts


@jax.jit
def _likelihoods(
    model: DecodingModel,
    x_QD: Float[Array, "Q D"],
    caches: list[KeyValue],
    starts_Q: Int[Array, " Q"],
    prompts_R: Int[Array, " R"],
    tokens_RT: Int[Array, "R T"],
    counts_RT: Bool[Array, "R T"],
) -> tuple[Float[Array, " R"], Bool[Array, " R"]]:
    """Compute the log-probability of each row's counted tokens, and whether all are greedy."""
    n_rows, n_tokens = tokens_RT.shape
    logits_RTV = model.logits(x_QD)[prompts_R][:, None]
    if n_tokens > 1:
        x_RTD = _after(model, caches, starts_Q, prompts_R, tokens_RT[:, :-1])
        rest = model.logits(x_RTD.reshape(n_rows * (n_tokens - 1), -1))
        logits_RTV = jnp.concatenate([logits_RTV, rest.reshape(n_rows, n_tokens - 1, -1)], 1)
    chosen_RT = jnp.take_along_axis(logits_RTV, tokens_RT[..., None], -1)[..., 0]
    log_probs_RT = chosen_RT - jax.nn.logsumexp(logits_RTV, -1)
    is_best_RT = chosen_RT >= jnp.max(logits_RTV, -1)
    return jnp.sum(jnp.where(counts_RT, log_probs_RT, 0.0), -1), jnp.all(is_best_RT | ~counts_RT, -1)


def _after(
    model: DecodingModel, caches: list[KeyValue], starts_Q: Array, prompts_R: Array, tokens_RT: Int[Array, "R T"]
) -> Float[Array, "R T D"]:
    """Run tokens after prompts, each seeing its prompt and the tokens before it. Returns the last block's outputs."""
    n_prompts, (n_rows, n_tokens) = len(starts_Q), tokens_RT.shape
    n_positions = caches[0].k.shape[1]

    def take_rows(x: Array) -> Array:
        """Take each row's prompt from a cache, which has several entries per prompt."""
        by_prompt = x.reshape(n_prompts, -1, *x.shape[1:])
        return by_prompt[prompts_R].reshape(-1, *x.shape[1:])

    starts_R1, index_1T = starts_Q[prompts_R][:, None], n_positions + jnp.arange(n_tokens)[None]
    tables = rotary(index_1T - starts_R1, model.config)
    shape = (n_rows, n_tokens)
    visible = KeyRange(jnp.broadcast_to(starts_R1, shape), jnp.broadcast_to(index_1T + 1, shape))
    x_RTD = model.embed_tokens(tokens_RT)
    for block, cache in zip(model.blocks, caches, strict=True):
        grown = KeyValue(*map(take_rows, cache)).grown(n_tokens)
        x_RTD, _ = block(x_RTD, tables, visible, grown, n_positions)
    return x_RTD
