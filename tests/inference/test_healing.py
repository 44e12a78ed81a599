"""Healing: what is taken back, what the spans must then write, and that nothing outside the gaps changes."""

import dataclasses

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.inference import decoding, generation, scoring
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import DecodingModel, Padding
from upalm.inference.grammar import NEVER, Automaton, Border, TokenBytes
from upalm.inference.healing import Vocabulary, take_back
from upalm.inference.sampling import Sampler
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.ul2r.symbols import EOS_ID

CONFIG = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
TEXT = "    for action in self._actions:\n        # naïve €-sign 你好: don't\n        return action.option_strings\n"
HEALED = GenerationConfig(mode="nlg", max_new_tokens=6, heal=True)


@pytest.fixture(scope="module")
def model():
    return DecodingModel.of(Decoder(CONFIG, key=jax.random.key(0)))


@st.composite
def cut_texts(draw):
    """TEXT with up to three gaps: at any characters, of any length, next to each other, at its ends."""
    cuts = sorted(draw(st.lists(st.integers(0, len(TEXT)), min_size=2, max_size=6).filter(lambda x: len(x) % 2 == 0)))
    edges = [0, *cuts, len(TEXT)]
    parts = [TEXT[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
    return parts if any(parts) else [TEXT, ""]


# --- What is taken back ---


@settings(deadline=None)
@given(parts=cut_texts(), limits=st.lists(st.integers(0, 2), min_size=3, max_size=3))
def test_taken_and_kept_tokens_are_those_of_the_text(tokenizer, parts, limits):
    ids, limits = [tokenizer.encode(part) for part in parts], limits[: len(parts) - 1]
    vocabulary = Vocabulary.of(tokenizer.token_bytes)
    healed = take_back(vocabulary, parts, ids, limits)
    borders = [Border(), *healed.borders, Border()]
    for i, part in enumerate(parts):
        kept = vocabulary.bytes_of(healed.parts[i])
        assert borders[i].tail + kept + b"".join(borders[i + 1].head) == part.encode()
        assert healed.parts[i] or not part or i in (0, len(parts) - 1)  # gaps have something between them
    n_taken = sum(map(len, ids)) - sum(map(len, healed.parts))
    assert sum(healed.limits) - sum(limits) == n_taken
    assert all(limit or border == Border() for limit, border in zip(limits, healed.borders, strict=True))


def taken(pieces, parts, stop=()):
    """The borders of gaps in a vocabulary of some pieces and all single characters."""
    tokens = [*pieces, *{c for part in parts for c in part} - set(pieces)]

    def encode(text):
        if not text:
            return []
        longest = max((t for t in tokens if text.startswith(t)), key=len)
        return [tokens.index(longest), *encode(text[len(longest) :])]

    ids = [encode(part) for part in parts]
    return take_back(Vocabulary.of([t.encode() for t in tokens]), parts, ids, [1] * (len(parts) - 1), stop).borders


@pytest.mark.parametrize(
    ("parts", "head", "tail"),
    [
        (["x retu", "urn x"], " retu", "urn"),  # " return" crosses the border
        (["x re", "turn x"], " re", "turn"),
        (["x ", " x"], " ", ""),  # after the gap begins no word
        (["x return", "x"], "", ""),  # nothing goes on after " return"
        (["x(", "(x"], "", ""),
        (["", ""], "", ""),
    ],
)
def test_borders_that_a_token_may_cross_are_healed(parts, head, tail):
    [border] = taken([" return", " re", "urn"], [*parts])
    assert (b"".join(border.head).decode(), border.tail.decode()) == (head, tail)


def test_a_stop_string_after_the_gap_is_not_taken_back():
    assert taken(["ab"], ["x", "b"])[0].tail == b"b"
    assert taken(["ab"], ["x", "b"], ["b"])[0].tail == b""


# --- The automaton ---

PIECES = st.lists(st.text("ab", min_size=1, max_size=3), max_size=3)


@settings(deadline=None)
@given(
    head=PIECES,
    tail=st.text("ab", max_size=3),
    stop=st.lists(st.text("ab", min_size=2, max_size=3), max_size=2),
    more=PIECES,
    data=st.data(),
)
def test_spans_begin_and_end_as_they_must(head, tail, stop, more, data):
    vocabulary = [*dict.fromkeys([*head, *more, "a", "b"])]
    automaton = Automaton.of(
        TokenBytes.of([x.encode() for x in vocabulary]), stop, Border(tuple(x.encode() for x in head), tail.encode())
    )
    state, written, joined = automaton.start, "", "".join(head)
    ends = {len("".join(head[:n])) for n in range(len(head) + 1)}
    for _ in range(8):
        n_left, to_go = automaton.to_go[state], automaton.to_go[automaton.table[state]]
        assert n_left == 0 or min(to_go) == n_left - 1  # what is promised can be kept
        token = data.draw(st.sampled_from(np.flatnonzero(to_go < NEVER).tolist()))
        state, written = automaton.table[state, token], written + vocabulary[token]
        assert written.startswith(joined) or (joined.startswith(written) and len(written) in ends)
        rest = written[len(joined) :]
        assert automaton.stopped[state] == any(word in rest for word in stop)
        is_right = written.startswith(joined) and rest.endswith(tail)
        assert (automaton.to_go[state] == 0) == (is_right or automaton.stopped[state])


# --- End to end ---


def answer(model, tokenizer, parts, config):
    """The task, its tokens, and the fill; padded so that little is compiled."""
    request = generation._build_request(tokenizer, parts, config, "", inputs_eos=False)
    rules = generation._rules(model, tokenizer, tuple(config.stop))
    [[completion]] = decoding.decode(model, [request.task], config, rules, Padding(1, 96))
    return request.task, completion, generation._parse(tokenizer, request, completion, config.stop)


@settings(max_examples=20, deadline=None)
@given(
    parts=cut_texts(),
    limit=st.integers(0, 6),
    seed=st.integers(0, 99),
    sampler=st.sampled_from([Sampler(), Sampler(2.0)]),
    stop=st.sampled_from([(), ("e",), ("\n", "ab")]),
)
def test_healing_keeps_the_grammar_and_the_text(model, tokenizer, parts, limit, seed, sampler, stop):
    config = dataclasses.replace(HEALED, max_new_tokens=limit, sampler=sampler, seed=seed, stop=stop)
    task, (tokens, _, _), filled = answer(model, tokenizer, parts, config)
    assert filled.format_ok and len(filled.spans) == task.n_gaps == len(parts) - 1
    assert filled.text == parts[0] + "".join(a + b for a, b in zip(filled.spans, parts[1:], strict=True))
    assert not any(word in span for span in filled.spans for word in stop)
    starts = [*np.flatnonzero(tokenizer.is_sentinel(tokens)), len(tokens) - 1]
    columns = zip(task.borders, task.limits, filled.spans, filled.finish_reasons, strict=True)
    for i, ((head, tail), most, fill, reason) in enumerate(columns):
        span = tokens[starts[i] + 1 : starts[i + 1]]
        written, before = b"".join(tokenizer.token_bytes[j] for j in span), b"".join(head)
        assert written.startswith(before) and len(span) <= most
        if reason != "stop":
            assert written.removeprefix(before).endswith(tail)
            inside = written.removeprefix(before).removesuffix(tail).decode(errors="replace")
            assert fill == (inside if head or tail else tokenizer.decode(span))  # which replaces bytes one by one


def test_a_gap_that_no_token_crosses_is_filled_as_without_healing(model, tokenizer):
    for parts in (["", " x"], ["naïve €", "\n"], ["", ""]):
        text = parts if any(parts) else ["", "", "."]
        plain = dataclasses.replace(HEALED, heal=False)
        ids = [tokenizer.encode(part) for part in text]
        limits = [6] * (len(text) - 1)
        healed = take_back(Vocabulary.of(tokenizer.token_bytes), text, ids, limits)
        assert healed.parts == ids and set(healed.borders) == {Border()}
        assert generation.infill(model, tokenizer, text, HEALED) == generation.infill(model, tokenizer, text, plain)


def test_batches_heal_as_single_texts(model, tokenizer):
    """The prompts of the first two are equal once their last word is taken back."""
    texts = [
        "    ret<extra_id_0>\n",
        "    re<extra_id_0>\n",
        "if x.opt<extra_id_0>tion an<extra_id_1>y",
        "<extra_id_0>b",
    ]
    config = dataclasses.replace(HEALED, sampler=Sampler(1.0), num_samples=2, seed=3)
    together = generation.infill_batch(model, tokenizer, texts, config)
    for text, filled in zip(texts, together, strict=True):
        assert filled.spans == generation.infill(model, tokenizer, text, config).spans


@settings(max_examples=15, deadline=None)
@given(
    parts=cut_texts(),
    seed=st.integers(0, 99),
    temperature=st.sampled_from([0.0, 2.0]),
    stop=st.sampled_from([(), ("e", "th")]),
    every=st.integers(1, 5),
)
def test_streams_have_the_bytes_of_the_fill_alone(model, tokenizer, parts, seed, temperature, stop, every):
    config = dataclasses.replace(HEALED, sampler=Sampler(temperature), seed=seed, stop=stop)
    pieces = list(generation.stream(model, tokenizer, parts, config, every=every))
    spans = generation.infill(model, tokenizer, parts, config).spans
    assert ["".join(p.text for p in pieces if p.gap == i) for i in range(len(spans))] == spans


def test_log_probabilities_are_of_the_healed_spans_tokens(model, tokenizer):
    parts = ["    ret", "n x.opt", ": y\n"]
    task, completion, filled = answer(model, tokenizer, parts, HEALED)
    assert task.borders[0].head and task.borders[0].tail
    [scored] = scoring.score(Decoder(CONFIG, key=jax.random.key(0)), [(task.prompt, completion.tokens)])
    is_text = ~tokenizer.is_sentinel(completion.tokens) & (completion.tokens != EOS_ID)
    assert sum(filled.logprobs) == pytest.approx(scored.log_probs[is_text].sum(), abs=1e-3)
    assert filled.logprob == pytest.approx(scored.log_probs.sum(), abs=1e-3)


def test_healing_takes_no_more_of_a_row(tokenizer):
    text = "    for action in act<extra_id_0>ions"
    n_tokens = set()
    for heal in (False, True):
        config = dataclasses.replace(HEALED, heal=heal)
        task = generation._build_request(tokenizer, text, config, "", inputs_eos=False).task
        assert any(task.borders[0]) == heal
        n_tokens.add(len(task.prompt) + task.max_tokens)
    assert len(n_tokens) == 1
