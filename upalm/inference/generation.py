"""What a user asks of a trained model, in text: `score`, `generate`, `infill`, and `stream` for either.

A gap is `<extra_id_0>`, `<extra_id_1>`, ... in a text, or the place between two parts of a list of parts. The
answer is `<extra_id_0> span <extra_id_1> span ... EOS` (U-PaLM section 4; UL2's format).
"""

import warnings
from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data.tokenizer import Tokenizer
from upalm.inference.decoding import Attention, Completion, DecodingModel, Ids, Task, check_tasks, decode, decode_stream
from upalm.inference.grammar import ANYTHING, FREE, stop_table
from upalm.inference.prompts import Mode, prompt_ids, split_gaps
from upalm.inference.sampling import Sampler
from upalm.model.palm import Decoder

FinishReason = Literal["closed", "stop", "length", "missing"]


# --- Infilling ------------------------------------------------------------------------------------


class Infill(NamedTuple):
    """A text with its gaps filled."""

    spans: list[str]
    text: str
    logprobs: list[float]
    """Sum over the tokens of each span, in nats, under the model without grammar or sampler."""
    finish_reasons: list[FinishReason]
    """Why each span ended: the model closed it, a stop string came, or it was as long as allowed; or the gap never
    came (without the grammar only)."""
    format_ok: bool
    """Every gap had exactly one span, in order, and the last was closed: by EOS, or a sentinel of no gap."""
    logprob: float
    """Of the whole answer, sentinels and EOS included: what samples are ranked by."""


def infill(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    text_or_parts: str | Sequence[str],
    *,
    mode: Mode = "nlg",
    max_new_tokens: int | Sequence[int] = 48,
    sampler: Sampler = Sampler(),
    num_samples: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    constrained: bool = True,
    inputs_eos: bool = False,
) -> list[Infill]:
    """Fill the gaps of a text; the likeliest sample comes first.

    Args:
        model: that has learnt to (`checkpoint.load_model`); for many calls, `DecodingModel.of(model)`.
        tokenizer: of the model.
        text_or_parts: text with `<extra_id_0>`, `<extra_id_1>`, ...; or the parts between which the gaps are.
        mode: of the prompt: `nlu` (short spans), `nlg` (long ones), `s2s` or `none`.
        max_new_tokens: most tokens in each gap, or in one after the other.
        sampler: how tokens are drawn.
        num_samples: answers to draw.
        seed: of the draws. A sample depends on it, on the prompt and on its number alone, whatever the batch.
        stop: strings that end a span; they are not part of it.
        constrained: decode under the grammar, which gives every gap exactly one span, lets no other sentinel in
            and always ends. Without it, `format_ok` says what the model has learnt, and the parser is tolerant:
            the first span of each gap counts, missing ones are empty, and what comes after the last is cut.

    Raises:
        ValueError: no gap, what `split_gaps` refuses, a limit below 0, a text that leaves no room for the answer,
            or a tokenizer that is not the model's.
    """
    return infill_batch(
        *(model, tokenizer, [text_or_parts]),
        mode=mode,
        max_new_tokens=[max_new_tokens],
        sampler=sampler,
        num_samples=num_samples,
        seed=seed,
        stop=stop,
        constrained=constrained,
        inputs_eos=inputs_eos,
    )[0]


def infill_batch(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str | Sequence[str]],
    *,
    mode: Mode = "nlg",
    max_new_tokens: int | Sequence[int | Sequence[int]] = 48,
    sampler: Sampler = Sampler(),
    num_samples: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    constrained: bool = True,
    batch_size: int = 16,
    inputs_eos: bool = False,
) -> list[list[Infill]]:
    """`infill` of many texts, [text][sample]; `max_new_tokens` may differ by text."""
    limits = [max_new_tokens] * len(texts) if isinstance(max_new_tokens, int) else max_new_tokens
    asked = [
        _build_request(tokenizer, text, mode, limit, constrained, _name(i, texts), inputs_eos)
        for i, (text, limit) in enumerate(zip(texts, limits, strict=True))
    ]
    for i, a in enumerate(asked):
        if len(a.parts) == 1:
            raise ValueError(f"{_name(i, texts)} has no gap: mark what is to be filled with <extra_id_0>.")
    options = {"sampler": sampler, "num_samples": num_samples, "seed": seed}
    return _answers(model, tokenizer, asked, stop, batch_size, **options)


def warn_of_gaps(info: CheckpointInfo) -> None:
    """Say so if the model never saw a gap."""
    if info.gaps_trained is False:
        warnings.warn(
            "this model was never trained on gaps (its mixture has no sentinels), so its fills do not heed the text "
            "after the gap; continue it with UL2R first.",
            stacklevel=3,
        )


# --- Continuation ---------------------------------------------------------------------------------


class Continuation(NamedTuple):
    """What follows a prompt."""

    text: str
    """Without the prompt."""
    logprob: float
    """In nats, of all that was generated."""
    finish_reason: FinishReason


def generate(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    **options: Any,
) -> list[Continuation]:
    """Continue a prompt; the likeliest sample comes first. The options are those of `generate_batch`."""
    return generate_batch(model, tokenizer, [text], **options)[0]


def generate_batch(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str | Sequence[str]],
    *,
    mode: Mode = "none",
    max_new_tokens: int = 64,
    sampler: Sampler = Sampler(),
    num_samples: int = 1,
    seed: int = 0,
    stop: Sequence[str] = (),
    attention: Attention = "prefix",
    batch_size: int = 16,
    inputs_eos: bool = False,
) -> list[list[Continuation]]:
    """Continuations of prompts, [prompt][sample], in all of the paper's forms: with or without mode token, with or
    without a final `<extra_id_0>` (U-PaLM section 4.2), which asks for a span in place of a continuation.

    `attention` says whether the prompt sees all of itself (`prefix`) or each of its tokens what came before (`causal`,
    as a base model was trained); the other options are those of `infill`.

    Raises:
        ValueError: a gap that is not at the end, an empty text, no room for the new tokens, or another's tokenizer.
    """
    asked = [
        _build_request(tokenizer, text, mode, max_new_tokens, True, _name(i, texts), inputs_eos)
        for i, text in enumerate(texts)
    ]
    for i, a in enumerate(asked):
        if len(a.parts) > 2 or a.parts[1:] not in ((), ("",)):
            raise ValueError(f"{_name(i, texts)} has text after a gap: that is for `infill`.")
    options = {"sampler": sampler, "num_samples": num_samples, "seed": seed, "attention": attention}
    found = _answers(model, tokenizer, asked, stop, batch_size, **options)
    return [[Continuation(x.spans[0], x.logprob, x.finish_reasons[0]) for x in samples] for samples in found]


def complete(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Ids],
    *,
    max_new_tokens: int,
    in_gap: bool = False,
    stop: Sequence[str] = (),
    attention: Attention = "prefix",
    batch_size: int = 16,
    n_positions: int = 0,
) -> list[Continuation]:
    """Greedy continuations of prompts that are ids already (without BOS); with `in_gap`, which says that they end with
    `<extra_id_0>`, the span that goes there.

    Raises:
        ValueError: a prompt that leaves no room for the new tokens, or another's tokenizer.
    """
    task = Task((), max_new_tokens + 2 * in_gap, int(in_gap) or FREE, (max_new_tokens,))
    parts = ("", "")[: 1 + in_gap]
    asked = [_Request(parts, task._replace(prompt=ids)) for ids in prompts]
    options = {"attention": attention, "n_positions": n_positions, "n_rows": batch_size}
    found = _answers(model, tokenizer, asked, stop, batch_size, **options)
    return [Continuation(x.spans[0], x.logprob, x.finish_reasons[0]) for [x] in found]


# --- Streaming ------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """Some more of a span."""

    gap: int
    text: str


def stream(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    text_or_parts: str | Sequence[str],
    *,
    mode: Mode = "nlg",
    max_new_tokens: int | Sequence[int] = 48,
    sampler: Sampler = Sampler(),
    seed: int = 0,
    stop: Sequence[str] = (),
    attention: Attention = "prefix",
    every: int = 4,
    inputs_eos: bool = False,
) -> Iterator[Piece]:
    """The spans of `infill`, or the continuation of a text without gaps, piece by piece as they come.

    The pieces of a gap, joined, are its span. What may still change is held back: the bytes of an unfinished
    character, and what may be the beginning of a stop string.
    """
    asked = _build_request(tokenizer, text_or_parts, mode, max_new_tokens, True, "the text", inputs_eos)
    options = {"sampler": sampler, "seed": seed, "attention": attention} | _grammar(model, tokenizer, stop)
    shown = [""] * max(1, len(asked.parts) - 1)
    for [[completion]] in decode_stream(model, [asked.task], every=every, **options):
        spans = _parsed(tokenizer, asked, completion, stop).spans
        last = max(1, int(tokenizer.is_sentinel(completion.tokens).sum())) - 1
        for gap, span in enumerate(spans[: last + 1]):
            final = gap < last or completion.finished
            new = (span if final else _stable_prefix(span, stop))[len(shown[gap]) :]
            if new:
                yield Piece(gap, new)
                shown[gap] += new


def _stable_prefix(text: str, stop: Sequence[str]) -> str:
    """Without what later tokens may turn into another character, or into a stop string."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    held = max((n for word in stop for n in range(1, len(word)) if text.endswith(word[:n])), default=0)
    return text[: len(text) - held]


# --- Between text and tokens ----------------------------------------------------------------------


def _name(i: int, texts: Sequence[Any]) -> str:
    return f"text {i}" if len(texts) > 1 else "the text"


class _Request(NamedTuple):
    parts: tuple[str, ...]
    task: Task


def _build_request(
    tokenizer: Tokenizer,
    text_or_parts: str | Sequence[str],
    mode: Mode,
    limits: int | Sequence[int],
    constrained: bool,
    what: str,
    inputs_eos: bool = False,
) -> _Request:
    parts = split_gaps(text_or_parts)
    n_gaps, prompt = len(parts) - 1, prompt_ids(tokenizer, parts, mode, inputs_eos)
    limits = (limits,) * max(n_gaps, 1) if isinstance(limits, int) else tuple(limits)
    if len(limits) != max(n_gaps, 1) or min(limits) < 0:
        raise ValueError(f"{what} has {n_gaps} gaps, max_new_tokens is {limits}: expected one limit, or one a gap.")
    if n_gaps == 0:
        return _Request(parts, Task(prompt, limits[0], FREE, limits))
    n_new = sum(limits) + n_gaps + 1  # sentinels and EOS
    return _Request(parts, Task(prompt, n_new, n_gaps if constrained else ANYTHING, limits))


def _grammar(model: Decoder | DecodingModel, tokenizer: Tokenizer, stop: Sequence[str]) -> dict[str, Any]:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} subwords, the model {model.config.vocab_size} embeddings: "
            "they do not belong together. Take both from one checkpoint (`load_model`)."
        )
    return {"symbols": tokenizer.symbols, "stop": stop_table(stop, tokenizer.token_bytes)}


def _answers(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    asked: Sequence[_Request],
    stop: Sequence[str],
    batch_size: int,
    n_rows: int = 0,
    **options: Any,
) -> list[list[Infill]]:
    """In batches of like length; the samples of each by falling likelihood."""
    options |= _grammar(model, tokenizer, stop)
    tasks = [a.task for a in asked]
    check_tasks(model.config, tasks, "text")  # before anything is decoded
    model = DecodingModel.of(model)
    found: list[list[Infill]] = [[]] * len(asked)
    order = sorted(range(len(asked)), key=lambda i: len(tasks[i].prompt))
    for at in range(0, len(order), batch_size):
        chosen = order[at : at + batch_size]
        samples = decode(model, [tasks[i] for i in chosen], n_rows=n_rows or min(batch_size, len(order)), **options)
        for i, completions in zip(chosen, samples, strict=True):
            answers = [_parsed(tokenizer, asked[i], completion, stop) for completion in completions]
            found[i] = sorted(answers, key=lambda answer: -answer.logprob)
    return found


def _parsed(tokenizer: Tokenizer, asked: _Request, completion: Completion, stop: Sequence[str]) -> Infill:
    """First span of each gap; the answer ends at EOS or at a sentinel of no gap, whichever comes first.

    If there is no `<extra_id_0>` then what comes before the first sentinel is the first span, as after one.
    """
    tokens, log_probs, n_gaps = completion.tokens, completion.log_probs, len(asked.parts) - 1
    sentinels = tokenizer.symbols.sentinels[:n_gaps]
    is_marker = tokenizer.is_sentinel(tokens)
    ends = np.flatnonzero((tokens == tokenizer.symbols.eos_id) | (is_marker & ~np.isin(tokens, sentinels)))
    end = int(ends[0]) if len(ends) else len(tokens)
    starts: list[int] = np.flatnonzero(is_marker[:end]).tolist()
    slots = [sentinels.index(tokens[start]) for start in starts]
    if 0 not in slots and (not n_gaps or [*starts, end][0] > 0):
        starts, slots = [-1, *starts], [0, *slots]

    spans, totals = [""] * len(asked.task.limits), [0.0] * len(asked.task.limits)
    reasons: list[FinishReason] = ["missing"] * len(spans)
    for slot, start, until in reversed(list(zip(slots, starts, [*starts[1:], end], strict=False))):
        n = until - start - 1
        is_cut = until == len(tokens) or (asked.task.n_gaps != ANYTHING and n == asked.task.limits[slot])
        spans[slot], reasons[slot] = _until_stop(tokenizer.decode(tokens[start + 1 : until]), stop, is_cut)
        totals[slot] = float(log_probs[start + 1 : until].sum())
    in_order = not n_gaps or (slots == list(range(n_gaps)) and starts[0] == 0)
    text = asked.parts[0] + "".join(a + b for a, b in zip(spans, (*asked.parts[1:], ""), strict=False))
    return Infill(spans, text, totals, reasons, in_order and len(ends) > 0, float(log_probs.sum()))


def _until_stop(text: str, stop: Sequence[str], is_cut: bool) -> tuple[str, FinishReason]:
    cuts = [text.index(word) for word in stop if word in text]
    if cuts:
        return text[: min(cuts)], "stop"
    return text, "length" if is_cut else "closed"
