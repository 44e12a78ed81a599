"""Bidirectional prefill, then cached steps for a batch of prompts under the grammar.

Prompts of a batch end at the same position (padding is on the left), so that every step writes one slot of
the cache and every query still sees one interval of keys. The cache holds 2 x K x H numbers per token and layer.

Dims: B batch rows, P prompt positions, D d_model, V vocabulary, G gaps.
"""

import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple, get_args

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from upalm.distributed.sharding import split_rows
from upalm.inference.config import Attention, GenerationConfig, check_at_least, check_choice
from upalm.inference.grammar import FREE, Automaton, Border, Grammar, Progress, Rules, join
from upalm.inference.sampling import Sampler
from upalm.model.attention import KeyRange, KeyValue, whole_positions
from upalm.model.config import ModelConfig
from upalm.model.layers import TransposedWeight, normalise, rotary
from upalm.model.palm import Block, Decoder, head_logits, scale_embeddings

Ids = Sequence[int] | np.ndarray
"""Token ids of a prompt or of a continuation."""

BUCKET = 32
"""Lengths are rounded up to this, so that few shapes are compiled."""


def round_up(n: int) -> int:
    """Round up to a multiple of BUCKET."""
    return -(-n // BUCKET) * BUCKET


def bucket(n: int) -> int:
    """Round up to BUCKET times 1, 1.5, 2, 3, 4, 6, ...: few shapes, however long the prompts.

    >>> [bucket(n) for n in (1, 33, 48, 50, 100)]
    [32, 48, 48, 64, 128]
    """
    size = BUCKET
    while size < n:
        size = size * 3 // 2 if size & (size - 1) == 0 else 1 << size.bit_length()
    return size


def check_length(config: ModelConfig, n: int, what: str) -> None:
    """Refuse rows that are longer than the model's.

    Raises:
        ValueError: with both lengths.
    """
    if n > config.seq_len:
        raise ValueError(
            f"{what} takes {n} tokens, the model's rows have {config.seq_len}: shorten it by {n - config.seq_len}."
        )


class DecodingModel(eqx.Module):
    """A `Decoder` prepared for generation: layers unstacked, weights cast and transposed. Build it once and reuse it.

    Every function that decodes takes either; given a `Decoder`, it makes this copy on every call.
    """

    embed: Float[Array, "V D"]
    blocks: tuple[Block, ...]
    norm: Float[Array, " D"] | None
    head: Float[Array, "V D"] | None
    config: ModelConfig = eqx.field(static=True)

    @classmethod
    def of(cls, model: "Decoder | DecodingModel") -> "DecodingModel":
        """Prepare a model, unless it is prepared already."""
        if isinstance(model, DecodingModel):
            return model
        embed, head = jax.tree.map(lambda x: x.astype(model.config.compute_dtype), (model.embed, model.head))
        return cls(embed, _unstack(model), model.norm, head, model.config)

    def logits(self, x_BD: Float[Array, "B D"]) -> Float[Array, "B V"]:
        """Logits of the last block's output."""
        table = self.embed if self.head is None else self.head
        x_BD = normalise(x_BD, self.norm, self.config)
        return head_logits(TransposedWeight(table, table.shape[:1]), x_BD, self.config.head_scale)

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Input embeddings in compute precision."""
        return scale_embeddings(self.embed[tokens], self.config)


@jax.jit
def _unstack(model: Decoder) -> tuple[Block, ...]:
    return tuple(block.transposed(model.config.compute_dtype) for block in model.unstacked())


class Completion(NamedTuple):
    """Generated tokens, and the log-probability of each under the model without grammar and sampler."""

    tokens: np.ndarray
    log_probs: np.ndarray
    finished: bool


class Task(NamedTuple):
    """A prompt, and how much may follow it."""

    prompt: Ids
    """Without BOS."""
    max_tokens: int
    """Most tokens to add, sentinels and EOS included."""
    n_gaps: int = FREE
    """Gaps that the answer must fill under the grammar; or FREE, or ANYTHING."""
    limits: tuple[int, ...] = ()
    """Most tokens of each gap."""
    borders: tuple[Border, ...] = ()
    """Bytes that the span of each gap begins and ends with."""
    n_before: int = 0
    """Tasks of the same prompt before it, in batches decoded earlier (`number_repeats`)."""


def check_tasks(config: ModelConfig, tasks: Sequence[Task], what: str) -> None:
    """Refuse tasks that are longer than the model's rows, by number.

    Raises:
        ValueError: with all lengths, and what there is to shorten.
    """
    for i, task in enumerate(tasks):
        n = 1 + len(task.prompt) + task.max_tokens
        if n > config.seq_len:
            raise ValueError(
                f"{what}{f' {i}' if len(tasks) > 1 else ''} of {len(task.prompt)} tokens with up to {task.max_tokens} "
                f"new ones takes {n} with BOS (mode token, sentinels, EOS and healed borders count), the model's rows "
                f"have {config.seq_len}: {_advise(task, n - config.seq_len)}."
            )


def _advise(task: Task, excess: int) -> str:
    """Say how a task gets shorter by `excess` tokens: by what has as many."""
    ways = []
    if excess < len(task.prompt):
        ways.append(f"shorten it by {excess}")
    if excess < (sum(task.limits) or task.max_tokens):
        ways.append(f"ask for {excess} fewer new tokens in all")
    return ", or ".join(ways) or f"shorten it and ask for fewer new tokens, by {excess} together"


class State(NamedTuple):
    """State of a batch between two steps."""

    step: Array
    token: Array  # [B], the one to feed next
    tokens: Array  # [B, max_new]
    log_probs: Array  # [B, max_new]
    progress: Progress
    caches: list[KeyValue]


class Padding(NamedTuple):
    """Shapes to pad a batch to, so that a smaller batch compiles nothing new."""

    n_rows: int = 0
    """Least prompts per batch."""
    n_positions: int = 0
    """Least tokens per prompt."""


def decode(
    model: Decoder | DecodingModel,
    tasks: Sequence[Task],
    config: GenerationConfig = GenerationConfig(),
    rules: Rules = Rules(),
    padding: Padding = Padding(),
) -> list[list[Completion]]:
    """Decode every sample of every task to its end: [task][sample]. See `decode_stream`."""
    *_, last = decode_stream(model, tasks, config, rules, padding, every=None)
    return last


def decode_stream(
    model: Decoder | DecodingModel,
    tasks: Sequence[Task],
    config: GenerationConfig = GenerationConfig(),
    rules: Rules = Rules(),
    padding: Padding = Padding(),
    *,
    every: int | None = 8,
) -> Iterator[list[list[Completion]]]:
    """Yield the completions so far, [task][sample], every few tokens, and once more at the end.

    A sample's draws depend on the seed, its prompt and its number, and on nothing else of the batch. (Equal prompts
    are told apart by their order, over several batches by `Task.n_before`.) A prompt is prefilled once for all its
    samples.

    Args:
        model: to decode with.
        tasks: one per prompt.
        config: sampler, samples, seed and attention; the rest of it is in `tasks` and `rules`.
        rules: of the tokenizer and of the stop strings.
        padding: least shapes.
        every: tokens between two yields; None for the end only.

    Raises:
        ValueError: no prompt, a prompt with its new tokens longer than the model's rows, or `every` below 1.
    """
    if not tasks:
        raise ValueError("no prompts.")
    if every is not None:
        check_at_least("every", every, 1)
    model = DecodingModel.of(model)
    check_tasks(model.config, tasks, "prompt")
    longest = max(task.max_tokens for task in tasks)
    state, starts, grammar, keys = _start(model, tasks, config, rules, padding)
    while True:
        ended = bool(jnp.all(state.progress.done))
        if ended or every is not None:
            yield _completions(state, len(tasks), config.num_samples)
        if ended:
            return
        until = jnp.int32(longest if every is None else int(state.step) + every)
        state = advance(model, state, starts, grammar, keys, until, sampler=config.sampler)


def _start(
    model: DecodingModel, tasks: Sequence[Task], config: GenerationConfig, rules: Rules, padding: Padding
) -> tuple[State, Array, Grammar, Array]:
    """Prefill the prompts and choose first tokens. Returns the state, where rows start, their grammar and keys."""
    n, n_vocab = config.num_samples, model.config.vocab_size
    padded = [*tasks, *[Task((), 0)] * (padding.n_rows - len(tasks))]
    prompts = [task.prompt for task in padded]
    n_positions = prompt_positions(prompts, max(padding.n_positions, round_up(max(map(len, prompts)))), model.config)
    max_new = round_up(max(1, *(task.max_tokens for task in padded)))
    tokens, starts = split_rows(left_padded(prompts, n_positions, rules.symbols.bos_id), len(padded))
    x_BD, caches = prefill(model, tokens, starts, max_new=max_new, attention=config.attention)
    spans, inputs = _grammar_inputs(padded, rules, n_vocab)
    rows = (x_BD, caches, starts, split_rows(inputs, len(padded)))
    x_BD, caches, starts, limits = _repeated(rows, n=n) if n > 1 else rows
    del rows
    keys = _sample_keys(tasks, n, config.seed)
    keys = jnp.concatenate([keys, jnp.repeat(keys[:1], len(starts) - len(keys), 0)])  # padding rows take any key
    grammar = Grammar.of(*limits, symbols=rules.symbols, spans=spans, n_embeddings=n_vocab)
    return _first(model, x_BD, caches, grammar, keys, sampler=config.sampler, max_new=max_new), starts, grammar, keys


def _sample_keys(tasks: Sequence[Task], num_samples: int, seed: int) -> Array:
    """Make one key per task and sample, tasks outermost."""
    seen: dict[int, int] = {}
    numbers = []
    for task in tasks:
        prompt = _hash_prompt(task)
        before = seen[prompt] = max(task.n_before, seen.get(prompt, -1) + 1)
        numbers += [(prompt, before * num_samples + i) for i in range(num_samples)]
    prompts, samples = (jnp.asarray(np.array(x, np.uint32)) for x in zip(*numbers, strict=True))
    fold = jax.vmap(jax.random.fold_in)
    return fold(jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(prompts), samples)


def _hash_prompt(task: Task) -> int:
    borders = repr(task.borders).encode() if any(map(any, task.borders)) else b""
    return zlib.crc32(np.asarray(task.prompt, np.int32).tobytes() + borders)


def number_repeats(tasks: Sequence[Task], seen: Counter[int]) -> list[Task]:
    """Set `n_before` of tasks that are decoded in several batches, so that equal prompts draw apart.

    Args:
        tasks: in their order.
        seen: what was numbered before, which these tasks are added to.
    """
    numbered = []
    for task in tasks:
        prompt = _hash_prompt(task)
        numbered.append(task._replace(n_before=seen[prompt]))
        seen[prompt] += 1
    return numbered


def prompt_positions(prompts: Sequence[Ids], n_tokens: int, config: ModelConfig) -> int:
    """Positions of rows for prompts padded to `n_tokens`. BOS comes on top.

    Where a GPU has a kernel for attention, positions are whole blocks of it, and BOS takes padding if there is any;
    but short rows, which have few scores, are not padded by more than a quarter.
    """
    whole = whole_positions(config.d_head, jnp.dtype(config.compute_dtype))
    n_whole = -(-max(n_tokens, 1 + max(map(len, prompts))) // whole) * whole
    return n_whole if whole > 1 and n_whole <= 1.25 * (1 + n_tokens) else 1 + n_tokens


def left_padded(
    prompts: Sequence[Ids], n_positions: int, bos_id: int
) -> tuple[Int[np.ndarray, "B P"], Int[np.ndarray, " B"]]:
    """Put BOS and the prompt at the end of each row of `n_positions`. Returns the rows and where prompts start."""
    tokens, starts = np.zeros((len(prompts), n_positions), np.int32), np.zeros(len(prompts), np.int32)
    for i, prompt in enumerate(prompts):
        starts[i] = n_positions - 1 - len(prompt)
        tokens[i, starts[i]] = bos_id
        tokens[i, starts[i] + 1 :] = prompt
    return tokens, starts


def _grammar_inputs(
    tasks: Sequence[Task], rules: Rules, n_vocab: int
) -> tuple[Automaton, tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Build the automaton of all gaps, and the rows of the grammar: `n_gaps`, `limits`, `max_tokens` and `starts`."""
    numbers = {border: i for i, border in enumerate(dict.fromkeys([Border(), *(b for t in tasks for b in t.borders)]))}
    spans, begins = join([Automaton.of_any_text(n_vocab) if rules.spans is None else rules.spans(b) for b in numbers])
    limits, starts = np.zeros((2, len(tasks), max(1, *(len(task.limits) for task in tasks))), np.int32)
    for task, limit, start in zip(tasks, limits, starts, strict=True):
        limit[: len(task.limits)] = task.limits
        start[: len(task.borders)] = [begins[numbers[border]] for border in task.borders]
    n_gaps, max_tokens = ([getattr(task, name) for task in tasks] for name in ("n_gaps", "max_tokens"))
    return spans, (np.array(n_gaps, np.int32), limits, np.array(max_tokens, np.int32), starts)


@partial(jax.jit, static_argnames="n")
def _repeated(rows, n: int):
    """Repeat each row n times. A cache has several entries per row."""
    n_rows = len(rows[0])

    def repeated(x: Array) -> Array:
        by_row = x.reshape(n_rows, -1, *x.shape[1:])
        return jnp.repeat(by_row, n, 0).reshape(-1, *x.shape[1:])

    return jax.tree.map(repeated, rows)


@partial(jax.jit, static_argnames=("max_new", "attention"))
def prefill(
    model: DecodingModel,
    tokens_BP: Int[Array, "B P"],
    starts_B: Int[Array, " B"],
    *,
    max_new: int,
    attention: Attention,
) -> tuple[Float[Array, "B D"], list[KeyValue]]:
    """Run the whole prompt at once, each query seeing [start, end).

    Returns the last outputs, and caches with room for `max_new` more tokens.

    Raises:
        ValueError: an unknown attention.
    """
    check_choice("attention", attention, get_args(Attention))
    n_prompt = tokens_BP.shape[1]
    index_BP = jnp.broadcast_to(jnp.arange(n_prompt), tokens_BP.shape)
    is_prompt = index_BP >= starts_B[:, None]
    ends = jnp.where(is_prompt, n_prompt, index_BP + 1) if attention == "prefix" else index_BP + 1
    visible = KeyRange(jnp.where(is_prompt, starts_B[:, None], 0), ends)
    tables = rotary(jnp.maximum(index_BP - starts_B[:, None], 0), model.config)
    x_BPD, caches = model.embed_tokens(tokens_BP), []
    for block in model.blocks[:-1]:
        x_BPD, kv = block(x_BPD, tables, visible)
        caches.append(kv.grown(max_new))
    # of the last block, only the last position's output is of use
    kv = model.blocks[-1].keys_values(x_BPD, tables)
    x_B1D, tables, visible = jax.tree.map(lambda x: x[:, -1:], (x_BPD, tables, visible))
    x_B1D, kv = model.blocks[-1](x_B1D, tables, visible, kv, n_prompt - 1)
    return x_B1D[:, 0], [*caches, kv.grown(max_new)]


@partial(jax.jit, static_argnames=("sampler", "max_new"))
def _first(
    model: DecodingModel, x_BD, caches, grammar: Grammar, keys: Array, *, sampler: Sampler, max_new: int
) -> State:
    """Choose the first token of each row."""
    shape = (len(x_BD), max_new)
    tokens, log_probs = jnp.full(shape, grammar.eos_id, jnp.int32), jnp.zeros(shape)
    progress = Progress.start(grammar.max_tokens)
    state = State(jnp.int32(0), jnp.zeros(len(x_BD), jnp.int32), tokens, log_probs, progress, caches)
    return _choose(state, model.logits(x_BD), grammar, keys, sampler)


def _choose(state: State, logits_BV, grammar: Grammar, keys: Array, sampler: Sampler) -> State:
    done = state.progress.done
    step_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, state.step)
    allowed_BV = grammar.allowed(state.progress)
    token = jnp.where(done, grammar.eos_id, sampler(jnp.where(allowed_BV, logits_BV, -jnp.inf), step_keys))
    log_prob = jnp.take_along_axis(jax.nn.log_softmax(logits_BV), token[:, None], -1)[:, 0]
    return state._replace(
        step=state.step + 1,
        token=token,
        tokens=state.tokens.at[:, state.step].set(token),
        log_probs=state.log_probs.at[:, state.step].set(jnp.where(done, 0.0, log_prob)),
        progress=grammar.after(state.progress, token),
    )


@partial(jax.jit, static_argnames="sampler", donate_argnames="state")
def advance(
    model: DecodingModel, state: State, starts_B, grammar: Grammar, keys: Array, until: Array, *, sampler: Sampler
) -> State:
    """Step until all rows are done, or `until` tokens are written."""
    n_rows, n_new = state.tokens.shape
    n_slots = state.caches[0].k.shape[1]

    def step(state: State) -> State:
        slot = n_slots - n_new + state.step - 1
        tables = rotary((slot - starts_B)[:, None], model.config)
        visible = KeyRange(starts_B[:, None], jnp.broadcast_to(slot + 1, (n_rows, 1)))
        x_B1D, caches = model.embed_tokens(state.token[:, None]), []
        for block, cache in zip(model.blocks, state.caches, strict=True):
            x_B1D, kv = block(x_B1D, tables, visible, cache, slot)
            caches.append(kv)
        return _choose(state._replace(caches=caches), model.logits(x_B1D[:, 0]), grammar, keys, sampler)

    return jax.lax.while_loop(lambda s: (s.step < until) & ~jnp.all(s.progress.done), step, state)


def _completions(state: State, n_tasks: int, num_samples: int) -> list[list[Completion]]:
    progress = state.progress
    columns = map(np.asarray, (state.tokens, state.log_probs, progress.n_tokens, progress.done))
    rows = [Completion(t[:n], p[:n], bool(done)) for t, p, n, done in zip(*columns, strict=True)]
    return [rows[i * num_samples : (i + 1) * num_samples] for i in range(n_tasks)]
