"""infill, generate and stream, from text to text.

A gap is `<extra_id_0>`, `<extra_id_1>`, ... in a text, or the place between two parts of a list of parts. The
answer is `<extra_id_0> span <extra_id_1> span ... EOS` (U-PaLM section 4; UL2's format). `LanguageModel` has these
functions as methods, with the model, its tokenizer and `inputs_eos` filled in.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, Literal, NamedTuple

import numpy as np

from upalm.data.tokenizer import Tokenizer
from upalm.inference.config import GenerationConfig, check_at_least
from upalm.inference.decoding import (
    Completion,
    DecodingModel,
    Ids,
    Padding,
    Task,
    check_tasks,
    decode,
    decode_stream,
    number_repeats,
)
from upalm.inference.grammar import ANYTHING, FREE, Automaton, Border, Rules, TokenBytes
from upalm.inference.healing import Vocabulary, take_back
from upalm.inference.prompts import join_parts, split_gaps
from upalm.model.palm import Decoder

FinishReason = Literal["closed", "stop", "length", "missing"]
"""Reason for which a span ended: the model closed it, a stop string came, or its limit was reached; or `missing`, where
an answer without the grammar has no span for the gap."""


# --- Infilling ------------------------------------------------------------------------------------


class Infill(NamedTuple):
    """A text with its gaps filled."""

    spans: list[str]
    text: str
    logprobs: list[float]
    """Log-probability of each span in nats, summed over its tokens, under the model without grammar and sampler. The
    tokens of a healed span (`GenerationConfig.heal`) also spell the bytes that were taken back from the text around."""
    finish_reasons: list[FinishReason]
    """Why each span ended."""
    format_ok: bool
    """Every gap had exactly one span, in order, and the last was closed: by EOS, or by a sentinel of no gap."""
    logprob: float
    """Log-probability of the whole answer, sentinels and EOS included. Samples are ranked by it."""
    alternatives: "tuple[Infill, ...]" = ()
    """The other samples, by falling log-probability."""


def infill(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    text_or_parts: str | Sequence[str],
    config: GenerationConfig = GenerationConfig(),
    *,
    inputs_eos: bool = False,
) -> Infill:
    """Fill the gaps of a text.

    Without the grammar (`config.constrained`) the parser is tolerant: the first span of each gap counts, missing ones
    are empty, and what follows the last is cut.

    Args:
        model: for many calls, `DecodingModel.of(model)`.
        tokenizer: the model's.
        text_or_parts: text with `<extra_id_0>`, `<extra_id_1>`, ...; or the parts between which the gaps are.
        config: how to fill them.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).

    Raises:
        ValueError: no gap, what `split_gaps` refuses, limits that are not one per gap, a text that leaves no room for
            the answer, or a tokenizer that is not the model's.
    """
    return infill_batch(model, tokenizer, [text_or_parts], config, inputs_eos=inputs_eos)[0]


def infill_batch(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str | Sequence[str]],
    config: GenerationConfig = GenerationConfig(),
    *,
    inputs_eos: bool = False,
    limits: Sequence[Sequence[int]] = (),
    repeats: Counter[int] | None = None,
) -> list[Infill]:
    """Fill the gaps of many texts, as `infill` does.

    Args:
        model: for many calls, `DecodingModel.of(model)`.
        tokenizer: the model's.
        texts: each as text or as parts.
        config: how to fill their gaps.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
        limits: most tokens of each gap of each text, in place of `config.max_new_tokens`.
        repeats: numbers the equal prompts of several calls, so that they draw apart; give each call the same one.

    Raises:
        ValueError: one text in place of several, or what `infill` refuses.
    """
    _check_several(texts, "infill")
    configs = [replace(config, max_new_tokens=tuple(x)) for x in limits] or [config] * len(texts)
    requests = []
    for i, (text, its_config) in enumerate(zip(texts, configs, strict=True)):
        requests.append(_build_request(tokenizer, text, its_config, _name(i, texts), inputs_eos=inputs_eos))
        if len(requests[-1].parts) == 1:
            raise ValueError(f"{_name(i, texts)} has no gap: mark what is to be filled with <extra_id_0>.")
    samples = _answer(model, tokenizer, requests, config, repeats=repeats)
    return [best._replace(alternatives=tuple(others)) for best, *others in samples]


# --- Continuation ---------------------------------------------------------------------------------


class Continuation(NamedTuple):
    """Text that a model writes after a prompt."""

    text: str
    """Without the prompt."""
    logprob: float
    """Log-probability of all generated tokens, in nats."""
    finish_reason: FinishReason
    alternatives: "tuple[Continuation, ...]" = ()
    """The other samples, by falling log-probability."""


def generate(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    text: str | Sequence[str],
    config: GenerationConfig = GenerationConfig(),
    *,
    inputs_eos: bool = False,
) -> Continuation:
    """Continue a prompt. See `generate_batch`."""
    return generate_batch(model, tokenizer, [text], config, inputs_eos=inputs_eos)[0]


def generate_batch(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    texts: Sequence[str | Sequence[str]],
    config: GenerationConfig = GenerationConfig(),
    *,
    inputs_eos: bool = False,
    repeats: Counter[int] | None = None,
) -> list[Continuation]:
    """Continue prompts, in all formats of the paper (U-PaLM section 4.2).

    A prompt has a mode token or none. It may end with `<extra_id_0>`, which requests a span in place of a continuation;
    the mode `auto` and `config.constrained` are then as for `infill`.

    Args:
        model: for many calls, `DecodingModel.of(model)`.
        tokenizer: the model's.
        texts: each as text or as parts.
        config: how to continue them.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
        repeats: numbers the equal prompts of several calls, so that they draw apart; give each call the same one.

    Raises:
        ValueError: one text in place of several, a gap that is not at the end, an empty text, no room for the new
            tokens, or another's tokenizer.
    """
    _check_several(texts, "generate")
    requests = []
    for i, text in enumerate(texts):
        requests.append(_build_request(tokenizer, text, config, _name(i, texts), inputs_eos=inputs_eos))
        if requests[-1].parts[1:] not in ((), ("",)):
            raise ValueError(f"{_name(i, texts)} has text after a gap: that is for `infill`.")
    return [_continuation(samples) for samples in _answer(model, tokenizer, requests, config, repeats=repeats)]


def complete(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Ids],
    config: GenerationConfig,
    *,
    in_gap: bool = False,
    n_positions: int = 0,
) -> list[Continuation]:
    """Continue prompts that are ids already (without BOS).

    Args:
        model: for many calls, `DecodingModel.of(model)`.
        tokenizer: the model's.
        prompts: ids; their mode token is among them.
        config: how to continue, with one limit.
        in_gap: the prompts end with `<extra_id_0>`, so the answer is the span that belongs there.
        n_positions: tokens to pad the prompts to. Batches are padded to `config.batch_size` prompts.

    Raises:
        ValueError: a prompt that leaves no room for the new tokens, or another's tokenizer.
    """
    assert isinstance(config.max_new_tokens, int)
    limit, parts = config.max_new_tokens, ("", "")[: 1 + in_gap]
    task = Task((), limit + 2 * in_gap, int(in_gap) or FREE, (limit,))
    requests = [_Request(parts, task._replace(prompt=ids)) for ids in prompts]
    padding = Padding(config.batch_size, n_positions)
    return [_continuation(samples) for samples in _answer(model, tokenizer, requests, config, padding)]


def _continuation(samples: Sequence[Infill]) -> Continuation:
    best, *others = (Continuation(x.spans[0], x.logprob, x.finish_reasons[0]) for x in samples)
    return best._replace(alternatives=tuple(others))


# --- Streaming ------------------------------------------------------------------------------------


class Piece(NamedTuple):
    """More text of a span."""

    gap: int
    text: str


def stream(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    text_or_parts: str | Sequence[str],
    config: GenerationConfig = GenerationConfig(),
    *,
    inputs_eos: bool = False,
    every: int = 4,
) -> Iterator[Piece]:
    """Yield the spans of `infill`, or the continuation of a text without gaps, piece by piece.

    The pieces of a gap, joined, are its span. Text that may still change is held back: the bytes of an unfinished
    character, and what may be the beginning of a stop string.

    Args:
        model: for many calls, `DecodingModel.of(model)`.
        tokenizer: the model's.
        text_or_parts: as for `infill`; or a text without gaps.
        config: how to answer, with one sample and under the grammar.
        inputs_eos: whether training ended inputs with EOS (`CheckpointInfo.inputs_eos`).
        every: tokens between two looks at the answer.

    Raises:
        ValueError: before the first piece, what `infill` refuses; several samples, no grammar, or `every` below 1.
    """
    check_at_least("every", every, 1)
    if config.num_samples > 1 or not config.constrained:
        raise ValueError("a stream is one sample under the grammar: set num_samples=1 and constrained=True.")
    request = _build_request(tokenizer, text_or_parts, config, "the text", inputs_eos=inputs_eos)
    rules = _rules(model, tokenizer, tuple(config.stop))
    check_tasks(model.config, [request.task], "the text")
    return _pieces(model, tokenizer, request, config, rules, every)


def _pieces(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    request: "_Request",
    config: GenerationConfig,
    rules: Rules,
    every: int,
) -> Iterator[Piece]:
    shown = [""] * max(1, len(request.parts) - 1)
    for [[completion]] in decode_stream(model, [request.task], config, rules, every=every):
        spans = _parse(tokenizer, request, completion, config.stop).spans
        last = max(1, int(tokenizer.is_sentinel(completion.tokens).sum())) - 1
        for gap, span in enumerate(spans[: last + 1]):
            is_final = gap < last or completion.finished
            tail = [border.tail.decode(errors="ignore") for border in request.task.borders[gap : gap + 1]]
            new = (span if is_final else _stable_prefix(span, (*config.stop, *tail)))[len(shown[gap]) :]
            if new:
                yield Piece(gap, new)
                shown[gap] += new


def _stable_prefix(text: str, stop: Sequence[str]) -> str:
    """Cut off what later tokens may turn into another character, or into a stop string."""
    text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    held = max((n for word in stop for n in range(1, len(word) + 1) if text.endswith(word[:n])), default=0)
    return text[: len(text) - held]


# --- Between text and tokens ----------------------------------------------------------------------


def _name(i: int, texts: Sequence[Any]) -> str:
    return f"text {i}" if len(texts) > 1 else "the text"


def _check_several(texts: Sequence[Any], name: str) -> None:
    if isinstance(texts, str):  # a text is a sequence of texts, too
        raise ValueError(f"texts is the text {texts!r:.80}, expected a sequence of texts: [text], or call `{name}`.")


class _Request(NamedTuple):
    parts: tuple[str, ...]
    task: Task


def _build_request(
    tokenizer: Tokenizer, text_or_parts: str | Sequence[str], config: GenerationConfig, name: str, *, inputs_eos: bool
) -> _Request:
    parts = split_gaps(text_or_parts)
    n_gaps = len(parts) - 1
    ids = [tokenizer.encode(part) for part in parts]
    limits = config.max_new_tokens
    limits = (limits,) * max(n_gaps, 1) if isinstance(limits, int) else tuple(limits)
    if len(limits) != max(n_gaps, 1):
        raise ValueError(f"{name} has {n_gaps} gaps, max_new_tokens is {limits}: expected one limit, or one per gap.")
    borders = (Border(),) * n_gaps
    if n_gaps and config.heal and config.constrained:
        ids, borders, limits = take_back(_vocabulary(tokenizer), parts, ids, limits, config.stop)
    prompt = join_parts(tokenizer, ids, config.mode_for(n_gaps > 0), inputs_eos)
    if n_gaps == 0:
        return _Request(parts, Task(prompt, limits[0], FREE, limits))
    n_new = sum(limits) + n_gaps + 1  # sentinels and EOS
    return _Request(parts, Task(prompt, n_new, n_gaps if config.constrained else ANYTHING, limits, borders))


def _rules(model: Decoder | DecodingModel, tokenizer: Tokenizer, stop: tuple[str, ...]) -> Rules:
    if tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} subwords, the model {model.config.vocab_size} embeddings: "
            "they do not belong together. Take both from one checkpoint (`load_model`)."
        )
    return Rules(tokenizer.symbols, partial(_spans, tokenizer, stop))


@lru_cache(maxsize=16)
def _spans(tokenizer: Tokenizer, stop: tuple[str, ...], border: Border) -> Automaton:
    if not stop and border == Border():
        return Automaton.of_any_text(tokenizer.vocab_size)  # reads no bytes
    return Automaton.of(_token_bytes(tokenizer), stop, border)


@lru_cache(maxsize=2)
def _token_bytes(tokenizer: Tokenizer) -> TokenBytes:
    return TokenBytes.of(tokenizer.token_bytes)


@lru_cache(maxsize=2)
def _vocabulary(tokenizer: Tokenizer) -> Vocabulary:
    return Vocabulary.of(tokenizer.token_bytes)


def _answer(
    model: Decoder | DecodingModel,
    tokenizer: Tokenizer,
    requests: Sequence[_Request],
    config: GenerationConfig,
    padding: Padding = Padding(),
    repeats: Counter[int] | None = None,
) -> list[list[Infill]]:
    """Answer requests in batches of like length. The samples of each come by falling log-probability."""
    rules, tasks = _rules(model, tokenizer, tuple(config.stop)), [request.task for request in requests]
    check_tasks(model.config, tasks, "text")  # before anything is decoded
    tasks = number_repeats(tasks, Counter() if repeats is None else repeats)
    model = DecodingModel.of(model)
    answers: list[list[Infill]] = [[]] * len(requests)
    order = sorted(range(len(requests)), key=lambda i: len(tasks[i].prompt))
    if not padding.n_rows:
        padding = padding._replace(n_rows=min(config.batch_size, len(order)))
    for at in range(0, len(order), config.batch_size):
        numbers = order[at : at + config.batch_size]
        samples = decode(model, [tasks[i] for i in numbers], config, rules, padding)
        for i, completions in zip(numbers, samples, strict=True):
            parsed = [_parse(tokenizer, requests[i], completion, config.stop) for completion in completions]
            answers[i] = sorted(parsed, key=lambda answer: -answer.logprob)
    return answers


def _parse(tokenizer: Tokenizer, request: _Request, completion: Completion, stop: Sequence[str]) -> Infill:
    """Read the first span of each gap. The answer ends at EOS or at a sentinel of no gap, whichever comes first.

    Without an `<extra_id_0>`, the tokens before the first sentinel are the first span.
    """
    tokens, log_probs, n_gaps = completion.tokens, completion.log_probs, len(request.parts) - 1
    sentinels = tokenizer.symbols.sentinels[:n_gaps]
    is_marker = tokenizer.is_sentinel(tokens)
    ends = np.flatnonzero((tokens == tokenizer.symbols.eos_id) | (is_marker & ~np.isin(tokens, sentinels)))
    end = int(ends[0]) if len(ends) else len(tokens)
    starts: list[int] = np.flatnonzero(is_marker[:end]).tolist()
    gaps = [sentinels.index(tokens[start]) for start in starts]
    if 0 not in gaps and (not n_gaps or [*starts, end][0] > 0):
        starts, gaps = [-1, *starts], [0, *gaps]

    limits = request.task.limits
    spans, totals = [""] * len(limits), [0.0] * len(limits)
    reasons: list[FinishReason] = ["missing"] * len(limits)
    for gap, start, until in reversed(list(zip(gaps, starts, [*starts[1:], end], strict=False))):
        is_full = request.task.n_gaps != ANYTHING and until - start - 1 == limits[gap]
        is_cut = until == len(tokens) or is_full
        border = request.task.borders[gap] if request.task.borders else Border()
        fill = _decode_span(tokenizer, tokens[start + 1 : until], border)
        spans[gap], reasons[gap] = _until_stop(fill, stop, is_cut)
        totals[gap] = float(log_probs[start + 1 : until].sum())
    in_order = not n_gaps or (gaps == list(range(n_gaps)) and starts[0] == 0)
    text = request.parts[0] + "".join(a + b for a, b in zip(spans, (*request.parts[1:], ""), strict=False))
    return Infill(spans, text, totals, reasons, in_order and len(ends) > 0, float(log_probs.sum()))


def _decode_span(tokenizer: Tokenizer, tokens: np.ndarray, border: Border) -> str:
    """Decode a span without the bytes that were taken back."""
    if border == Border():
        return tokenizer.decode(tokens)
    written = b"".join(tokenizer.token_bytes[token] for token in tokens)
    return written[len(b"".join(border.head)) :].removesuffix(border.tail).decode(errors="replace")


def _until_stop(text: str, stop: Sequence[str], is_cut: bool) -> tuple[str, FinishReason]:
    cuts = [text.index(word) for word in stop if word in text]
    if cuts:
        return text[: min(cuts)], "stop"
    return text, "length" if is_cut else "closed"
