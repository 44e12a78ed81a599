"""`score`, `generate`, `infill`: a bidirectional prefill over the prompt, then cached causal steps.

Prompts of a batch end at the same position (padding is on the left), so that every step writes one slot of
the cache and every query still sees one interval of keys.

Dims: B batch rows, P prompt positions, T positions, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from upalm import ul2r
from upalm.batch import Batch
from upalm.layers import KeyRange, KeyValue, rotary
from upalm.loss import token_log_probs
from upalm.model import Decoder, normalise
from upalm.tokenizer import BOS_ID, EOS_ID, MODES, N_SENTINELS, SENTINEL_TEXT, UNK_ID, Tokenizer

Attention = Literal["prefix", "causal"]
Mode = str  # none, s2s, nlu or nlg

Ids = Sequence[int] | np.ndarray

_BUCKET = 32  # lengths are rounded up to this, so that few shapes are compiled


# --- Scoring --------------------------------------------------------------------------------------


def score(
    model: Decoder,
    examples: Sequence[tuple[Ids, Ids]],
    *,
    attention: Attention = "prefix",
    batch_size: int = 16,
) -> list[np.ndarray]:
    """Log-probability of every target token of (prompt ids, target ids) pairs, in nats.

    Raises:
        ValueError: an empty target, or a pair longer than the model's rows.
    """
    for i, (prompt, target) in enumerate(examples):
        if len(target) == 0:
            raise ValueError(f"example {i} has an empty target: there is nothing to score.")
        _check_length(model, len(prompt) + len(target), f"example {i}")
    order = sorted(range(len(examples)), key=lambda i: len(examples[i][0]) + len(examples[i][1]))
    found: list[np.ndarray] = [np.empty(0)] * len(examples)
    for at in range(0, len(order), batch_size):
        chosen = order[at : at + batch_size]
        longest = max(len(examples[i][0]) + len(examples[i][1]) for i in chosen)
        batch = Batch.empty(batch_size, _round_up(longest))
        for b, i in enumerate(chosen):
            prompt, target = (np.asarray(x, np.int32) for x in examples[i])
            row = Batch(*(x[b] for x in batch))
            ul2r.write_segment(row, 0, ul2r.Example(prompt, target), 1, 0, BOS_ID)
        log_probs = np.asarray(_log_probs(model, batch if attention == "prefix" else batch.causal()))
        for b, i in enumerate(chosen):
            found[i] = log_probs[b][batch.loss_weights[b] > 0]
    return found


@jax.jit
def _log_probs(model: Decoder, batch: Batch) -> Float[Array, "B T"]:
    return token_log_probs(model(batch), batch.target_tokens)[0]


def _round_up(n: int) -> int:
    return -(-n // _BUCKET) * _BUCKET


def _check_length(model: Decoder, n: int, what: str) -> None:
    if n > model.config.seq_len:
        raise ValueError(
            f"{what} takes {n} tokens, the model's rows have {model.config.seq_len}: "
            f"shorten it by {n - model.config.seq_len}, or ask for fewer new tokens."
        )


# --- Decoding -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sampler:
    """How the next token is chosen."""

    temperature: float = 0.0
    """0 is greedy."""
    top_k: int = 0
    """Keep the k most likely; 0 keeps all."""
    top_p: float = 1.0
    """Keep the most likely up to this probability."""

    def __post_init__(self):
        if self.temperature < 0 or self.top_k < 0 or not 0 < self.top_p <= 1:
            raise ValueError(f"{self}: expected temperature >= 0, top_k >= 0, top_p in (0, 1].")

    def __call__(self, logits_BV: Float[Array, "B V"], keys: Array) -> Int[Array, " B"]:
        """Choose a token a row, each with its own key."""
        if self.temperature == 0:
            return jnp.argmax(logits_BV, -1).astype(jnp.int32)
        logits_BV = logits_BV / self.temperature
        if self.top_k:
            kth = jax.lax.top_k(logits_BV, min(self.top_k, logits_BV.shape[-1]))[0][:, -1:]
            logits_BV = jnp.where(logits_BV < kth, -jnp.inf, logits_BV)
        if self.top_p < 1:
            ordered = jnp.sort(logits_BV, -1, descending=True)
            mass_before = jnp.cumsum(jax.nn.softmax(ordered, -1), -1) - jax.nn.softmax(ordered, -1)
            least = jnp.min(jnp.where(mass_before < self.top_p, ordered, jnp.inf), -1, keepdims=True)
            logits_BV = jnp.where(logits_BV < least, -jnp.inf, logits_BV)
        return jax.vmap(jax.random.categorical)(keys, logits_BV).astype(jnp.int32)


class Grammar(NamedTuple):
    """`<extra_id_0> span <extra_id_1> span ... EOS`, enforced for rows with gaps; free text without."""

    n_gaps: Int[Array, " B"]
    max_span: Int[Array, ""]
    markers: Int[Array, " M"]
    """Sentinels in order."""

    def allowed(self, opened: Int[Array, " B"], span_length: Int[Array, " B"], n_vocab: int) -> Bool[Array, "B V"]:
        """Tokens that may come next when `opened` sentinels have come and the span has `span_length` tokens."""
        ids = jnp.arange(n_vocab)[None]
        is_marker = jnp.zeros(n_vocab, bool).at[self.markers].set(True)[None]
        following = jnp.where(opened < self.n_gaps, self.markers[jnp.minimum(opened, len(self.markers) - 1)], EOS_ID)
        may_close = ids == following[:, None]
        may_write = ((opened > 0) & (span_length < self.max_span))[:, None] & ~is_marker & (ids != EOS_ID)
        is_free = (self.n_gaps == 0)[:, None]
        return (is_free | may_close | may_write) & (ids != BOS_ID) & (ids != UNK_ID)


class Completion(NamedTuple):
    """Tokens that were generated, and the log-probability of each under the unconstrained model."""

    tokens: np.ndarray
    log_probs: np.ndarray
    finish_reason: Literal["eos", "length"]


class _State(NamedTuple):
    step: Array
    token: Array  # [B], the one to feed next
    tokens: Array  # [B, max_new]
    log_probs: Array  # [B, max_new]
    opened: Array  # [B], sentinels so far
    span_length: Array  # [B], tokens since the last one
    done: Array  # [B]
    caches: list[KeyValue]


def decode(
    model: Decoder,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    sampler: Sampler = Sampler(),
    seed: int = 0,
    attention: Attention = "prefix",
    n_gaps: Sequence[int] | None = None,
    max_span: int | None = None,
    markers: Sequence[int] = (),
) -> list[Completion]:
    """Continue each prompt up to EOS or `max_new_tokens`. Row i draws from (seed, i) alone.

    Args:
        n_gaps: per row, the number of gaps that the sentinel grammar must fill; 0 is free text.
        max_span: most tokens in a gap.
        markers: the sentinels, in order.

    Raises:
        ValueError: no prompt, or a prompt with its new tokens longer than the model's rows.
    """
    if not prompts:
        raise ValueError("no prompts.")
    for i, prompt in enumerate(prompts):
        _check_length(model, 1 + len(prompt) + max_new_tokens, f"prompt {i} with {max_new_tokens} new tokens")
    n = 1 + _round_up(max(map(len, prompts)))  # BOS comes on top
    tokens, starts = np.zeros((len(prompts), n), np.int32), np.zeros(len(prompts), np.int32)
    for i, prompt in enumerate(prompts):
        starts[i] = n - 1 - len(prompt)
        tokens[i, starts[i]] = BOS_ID
        tokens[i, starts[i] + 1 :] = prompt
    gaps = np.zeros(len(prompts), np.int32) if n_gaps is None else np.asarray(n_gaps, np.int32)
    limit = np.int32(max_new_tokens if max_span is None else max_span)
    marker_ids = np.asarray(markers if len(markers) else (EOS_ID,), np.int32)
    key = jax.random.key(seed)
    state = _decode(
        *(model, tokens, starts, Grammar(*map(jnp.asarray, (gaps, limit, marker_ids))), key),
        max_new=max_new_tokens,
        sampler=sampler,
        attention=attention,
    )
    completions = []
    for ids, log_probs in zip(np.asarray(state.tokens), np.asarray(state.log_probs), strict=True):
        ends = np.flatnonzero(ids == EOS_ID)
        n_kept = int(ends[0]) + 1 if len(ends) else max_new_tokens
        completions.append(Completion(ids[:n_kept], log_probs[:n_kept], "eos" if len(ends) else "length"))
    return completions


@partial(jax.jit, static_argnames=("max_new", "sampler", "attention"))
def _decode(
    model: Decoder,
    tokens_BP: Int[Array, "B P"],
    starts_B: Int[Array, " B"],
    grammar: Grammar,
    key: Array,
    *,
    max_new: int,
    sampler: Sampler,
    attention: Attention,
) -> _State:
    n_rows, n_prompt = tokens_BP.shape
    blocks = model.unstacked()
    row_keys = jax.vmap(partial(jax.random.fold_in, key))(jnp.arange(n_rows))

    def head(x_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        return model.logits(normalise(x_BD, None, model.config.norm))

    def choose(state: _State, logits_BV: Float[Array, "B V"]) -> _State:
        allowed = grammar.allowed(state.opened, state.span_length, logits_BV.shape[-1])
        keys = jax.vmap(jax.random.fold_in, (0, None))(row_keys, state.step)
        token = jnp.where(state.done, EOS_ID, sampler(jnp.where(allowed, logits_BV, -jnp.inf), keys))
        log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token[:, None], -1)[:, 0]
        is_marker = jnp.any(token[:, None] == grammar.markers[None], -1)
        return state._replace(
            step=state.step + 1,
            token=token,
            tokens=state.tokens.at[:, state.step].set(token),
            log_probs=state.log_probs.at[:, state.step].set(jnp.where(state.done, 0.0, log_prob)),
            opened=state.opened + is_marker,
            span_length=jnp.where(is_marker, 0, state.span_length + 1),
            done=state.done | (token == EOS_ID),
        )

    # the whole prompt at once, each query seeing [start, end)
    index_BP = jnp.broadcast_to(jnp.arange(n_prompt), tokens_BP.shape)
    is_prompt = index_BP >= starts_B[:, None]
    ends = jnp.where(is_prompt, n_prompt, index_BP + 1) if attention == "prefix" else index_BP + 1
    mask = KeyRange(jnp.where(is_prompt, starts_B[:, None], 0), ends).mask(n_prompt)
    tables = rotary(jnp.maximum(index_BP - starts_B[:, None], 0), model.config.d_head)
    x_BPD, caches = model.embed_tokens(tokens_BP), []
    for block in blocks:
        x_BPD, kv = block(x_BPD, tables, mask)
        caches.append(kv.grown(max_new))

    zeros = jnp.zeros(n_rows, jnp.int32)
    shape = (n_rows, max_new)
    state = _State(
        *(jnp.int32(0), zeros, jnp.full(shape, EOS_ID, jnp.int32), jnp.zeros(shape)),
        *(zeros, zeros, jnp.zeros(n_rows, bool), caches),
    )
    state = choose(state, head(x_BPD[:, -1]))

    def step(state: _State) -> _State:
        slot = n_prompt + state.step - 1
        tables = rotary((slot - starts_B)[:, None], model.config.d_head)
        mask = KeyRange(starts_B[:, None], jnp.broadcast_to(slot + 1, (n_rows, 1))).mask(n_prompt + max_new)
        x_B1D, caches = model.embed_tokens(state.token[:, None]), []
        for block, cache in zip(blocks, state.caches, strict=True):
            x_B1D, kv = block(x_B1D, tables, mask, cache, slot)
            caches.append(kv)
        return choose(state._replace(caches=caches), head(x_B1D[:, 0]))

    return jax.lax.while_loop(lambda s: (s.step < max_new) & ~jnp.all(s.done), step, state)


# --- Text -----------------------------------------------------------------------------------------


class Infill(NamedTuple):
    """A text with its gaps filled."""

    spans: list[str]
    text: str
    log_probs: list[float]
    """Sum over the tokens of each span, in nats."""
    format_ok: bool
    """Every gap had exactly one span, in order, and the last was closed: by EOS, or a sentinel of no gap."""


def prompt_ids(tokenizer: Tokenizer, text: str, mode: Mode = "none") -> tuple[list[int], int]:
    """Ids of a prompt, and its number of gaps. The mode token comes first; `<extra_id_i>` become sentinels;
    EOS comes last if there are gaps and the model was trained so.

    Every piece between gaps is encoded by itself.

    Raises:
        ValueError: an unknown mode, over 100 gaps, or gaps that are not numbered 0, 1, 2, ... in order.
    """
    if mode != "none" and mode not in MODES:
        raise ValueError(f"mode is {mode!r}, expected one of {['none', *MODES]}.")
    pieces = SENTINEL_TEXT.split(text)
    numbers = [int(x) for x in pieces[1::2]]
    if numbers != list(range(len(numbers))):
        raise ValueError(f"gaps are numbered {numbers}: expected <extra_id_0>, <extra_id_1>, ... each once, in order.")
    if len(numbers) > N_SENTINELS:
        raise ValueError(f"{len(numbers)} gaps: there are {N_SENTINELS} sentinels.")
    ids = list(tokenizer.symbols.modes[mode]) if mode != "none" else []
    for i, piece in enumerate(pieces[0::2]):
        ids += tokenizer.encode(piece)
        ids += [tokenizer.symbols.sentinels[i]] if i < len(numbers) else []
    return ids + [EOS_ID] * (tokenizer.inputs_eos and len(numbers) > 0), len(numbers)


def generate(
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    mode: Mode = "none",
    max_new_tokens: int = 64,
    sampler: Sampler = Sampler(),
    seed: int = 0,
    attention: Attention = "prefix",
) -> list[str]:
    """Continuations of prompts. All of the paper's forms: with or without mode token, with or without a
    final `<extra_id_0>` (U-PaLM section 4.2).
    """
    prompts = [prompt_ids(tokenizer, text, mode)[0] for text in texts]
    options = {"max_new_tokens": max_new_tokens, "sampler": sampler, "seed": seed, "attention": attention}
    return [tokenizer.decode(c.tokens) for c in decode(model, prompts, **options)]


def infill(
    model: Decoder,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    mode: Mode = "nlg",
    max_span_tokens: int = 48,
    sampler: Sampler = Sampler(),
    seed: int = 0,
    constrained: bool = True,
) -> list[Infill]:
    """Fill the gaps `<extra_id_0>`, `<extra_id_1>`, ... of each text.

    `constrained` decoding gives every gap exactly one span and always ends; without it `format_ok` says what
    the model has learnt, and the parser is tolerant: first span of each gap, missing ones empty, run-ons cut.

    Raises:
        ValueError: a text without gaps, or what `prompt_ids` and `decode` refuse.
    """
    prompts, gaps = zip(*(prompt_ids(tokenizer, text, mode) for text in texts), strict=True)
    for i, n in enumerate(gaps):
        if n == 0:
            raise ValueError(f"text {i} has no gap: mark what is to be filled with <extra_id_0>.")
    max_new = max(gaps) * (max_span_tokens + 1) + 1
    completions = decode(
        *(model, prompts),
        max_new_tokens=max_new,
        sampler=sampler,
        seed=seed,
        n_gaps=gaps if constrained else None,
        max_span=max_span_tokens,
        markers=tokenizer.symbols.sentinels,
    )
    return [_parse(tokenizer, *x) for x in zip(texts, gaps, completions, strict=True)]


def _parse(tokenizer: Tokenizer, text: str, n_gaps: int, completion: Completion) -> Infill:
    """First span of each gap; the output ends at EOS or at a sentinel of no gap, whichever comes first."""
    sentinels = tokenizer.symbols.sentinels[:n_gaps]
    tokens = completion.tokens
    is_marker = tokens >= tokenizer.first_sentinel
    ends = np.flatnonzero((tokens == EOS_ID) | (is_marker & ~np.isin(tokens, sentinels)))
    end = int(ends[0]) if len(ends) else len(tokens)
    starts = np.flatnonzero(is_marker[:end])
    spans, log_probs = [""] * n_gaps, [0.0] * n_gaps
    for start, stop in reversed(list(zip(starts, [*starts, end][1:], strict=True))):  # so that the first wins
        slot, inside = sentinels.index(int(tokens[start])), slice(start + 1, stop)
        spans[slot] = tokenizer.decode(tokens[inside])
        log_probs[slot] = float(completion.log_probs[inside].sum())
    in_order = tuple(tokens[starts]) == sentinels and tokens[0] == sentinels[0]
    kept = SENTINEL_TEXT.split(text)[0::2]
    filled = kept[0] + "".join(span + piece for span, piece in zip(spans, kept[1:], strict=True))
    return Infill(spans, filled, log_probs, bool(in_order and len(ends)))
