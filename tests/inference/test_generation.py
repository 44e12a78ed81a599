"""Infilling and continuing text: the sentinel grammar end to end, the tolerant parser, streams and bad input."""

import dataclasses
from collections import Counter

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.inference import decoding, generation, prompts, scoring
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import Completion, DecodingModel, Task
from upalm.inference.grammar import ANYTHING, FREE, Automaton
from upalm.inference.sampling import Sampler
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder
from upalm.ul2r.symbols import EOS_ID, SENTINEL_TEXT

CONFIG = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)
GAPS_3 = "def f(a):\n    <extra_id_0>\n    <extra_id_1>\n    <extra_id_2>\n"


@pytest.fixture(scope="module")
def model():
    return DecodingModel.of(Decoder(CONFIG, key=jax.random.key(0)))


def text_of(n_gaps):
    return "def f(a):\n" + "".join(f"    <extra_id_{i}>\n" for i in range(n_gaps))


# --- The grammar, end to end ---


def test_a_sentinels_characters_in_a_part_are_text(model, tokenizer):
    parts = ["the word <extra_id_0> is ", " here"]
    ids = prompts.prompt_ids(tokenizer, parts)
    assert [i for i in ids if i >= tokenizer.first_sentinel] == [tokenizer.symbols.sentinels[0]]
    filled = generation.infill(model, tokenizer, parts, GenerationConfig(max_new_tokens=3))
    assert filled.text == parts[0] + filled.spans[0] + parts[1]


@settings(max_examples=25, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    limit=st.integers(0, 5),
    seed=st.integers(0, 1000),
    sampler=st.sampled_from([Sampler(), Sampler(1.0), Sampler(3.0, min_p=0.01), Sampler(1.0, top_k=4)]),
    mode=st.sampled_from(["none", "nlu", "nlg", "s2s"]),
    stop=st.sampled_from([(), ("e",), ("\n", "ab")]),
)
def test_every_gap_gets_one_span_and_the_rest_is_kept(model, tokenizer, gaps, limit, seed, sampler, mode, stop):
    texts = [text_of(n) for n in gaps]
    config = GenerationConfig(mode=mode, max_new_tokens=limit, sampler=sampler, seed=seed, stop=stop)
    for text, n, f in zip(texts, gaps, generation.infill_batch(model, tokenizer, texts, config), strict=True):
        assert f.format_ok
        assert [len(x) for x in (f.spans, f.logprobs, f.finish_reasons)] == [n] * 3
        for i, span in enumerate(f.spans):
            assert not SENTINEL_TEXT.search(span)
            assert not any(word in span for word in stop)
            text = text.replace(f"<extra_id_{i}>", span)
        assert f.text == text
        assert set(f.finish_reasons) <= {"closed", "length", *(["stop"] if stop else [])}


def test_limits_are_of_each_gap(model, tokenizer):
    f = generation.infill(model, tokenizer, GAPS_3, GenerationConfig(max_new_tokens=(0, 2, 7), heal=False))
    assert f.spans[0] == "" and f.finish_reasons[0] == "length"
    assert len(f.spans[1].encode()) <= 2 * max(map(len, tokenizer.token_bytes))
    with pytest.raises(ValueError, match="3 gaps, max_new_tokens is \\(1, 2\\)"):
        generation.infill(model, tokenizer, GAPS_3, GenerationConfig(max_new_tokens=(1, 2)))


def test_log_probabilities_are_those_of_score(model, tokenizer):
    plain = Decoder(CONFIG, key=jax.random.key(0))
    config = GenerationConfig(mode="nlg", max_new_tokens=5, sampler=Sampler(1.0), num_samples=3)
    best = generation.infill(model, tokenizer, GAPS_3, config)
    samples = [best, *best.alternatives]
    assert [s.logprob for s in samples] == sorted((s.logprob for s in samples), reverse=True)
    request = generation._build_request(tokenizer, GAPS_3, config, "", inputs_eos=False)
    [completions] = decoding.decode(model, [request.task], config, generation._rules(model, tokenizer, ()))
    for completion in completions:
        sample = next(s for s in samples if s.logprob == pytest.approx(completion.log_probs.sum(), abs=1e-4))
        [scored] = scoring.score(plain, [(request.task.prompt, completion.tokens)])
        assert sample.logprob == pytest.approx(scored.log_probs.sum(), abs=1e-3)
        is_text = (completion.tokens < tokenizer.first_sentinel) & (completion.tokens != EOS_ID)
        assert sum(sample.logprobs) == pytest.approx(scored.log_probs[is_text].sum(), abs=1e-3)


def test_without_the_grammar_a_blank_model_breaks_format(model, tokenizer):
    ignorant = jax.tree.map(lambda x: x * 0, model)  # every token is equally likely: greedy takes the first usable
    text = "a <extra_id_0> b"
    free = generation.infill(ignorant, tokenizer, text, GenerationConfig(constrained=False, max_new_tokens=8))
    assert (free.format_ok, free.spans, free.finish_reasons) == (False, [""], ["missing"])
    forced = generation.infill(ignorant, tokenizer, text, GenerationConfig(max_new_tokens=8))
    assert forced.format_ok and forced.finish_reasons == ["closed"]


# --- The parser ---


def parse(tokenizer, text, pieces, n_gaps=ANYTHING):
    ids = np.array([i for x in pieces for i in ([x] if isinstance(x, int) else tokenizer.encode(x))], int)
    parts = prompts.split_gaps(text)
    request = generation._Request(parts, Task([], 99, n_gaps, (9,) * max(1, len(parts) - 1)))
    return generation._parse(tokenizer, request, Completion(ids, np.zeros(len(ids)), True), ())


def test_tolerant_parser(tokenizer):
    s0, s1, s2 = tokenizer.symbols.sentinels[:3]
    text = "x<extra_id_0>y<extra_id_1>z"
    good = parse(tokenizer, text, [s0, "one", s1, "two", EOS_ID])
    assert (good.spans, good.text, good.format_ok) == (["one", "two"], "xoneytwoz", True)
    assert good.finish_reasons == ["closed", "closed"]
    for pieces, spans, reasons in [
        ([s0, "one", EOS_ID], ["one", ""], ["closed", "missing"]),
        ([s0, "one", s1, "two", s0, "again", EOS_ID], ["one", "two"], ["closed", "closed"]),  # the first counts
        ([s1, "two", s0, "one", EOS_ID], ["one", "two"], ["closed", "closed"]),  # out of order
        (["one", s1, "two", EOS_ID], ["one", "two"], ["closed", "closed"]),  # a missing leader is forgiven
        (["junk", s0, "one", s1, "two", EOS_ID], ["one", "two"], ["closed", "closed"]),
        ([s0, "one", s1, "two"], ["one", "two"], ["closed", "length"]),
        (["one"], ["one", ""], ["length", "missing"]),
        ([EOS_ID], ["", ""], ["missing", "missing"]),
        ([], ["", ""], ["missing", "missing"]),
    ]:
        parsed = parse(tokenizer, text, pieces)
        assert (parsed.spans, parsed.finish_reasons, parsed.format_ok) == (spans, reasons, False), pieces
    ran_on = parse(tokenizer, text, [s0, "one", s1, "two", s2, "three", EOS_ID])
    assert (ran_on.spans, ran_on.format_ok) == (["one", "two"], True)  # closed, and cut there


def test_text_without_gaps_is_its_own_span(tokenizer):
    assert parse(tokenizer, "x", ["one", EOS_ID], FREE).spans == ["one"]
    assert parse(tokenizer, "x", [EOS_ID], FREE).spans == [""]


# --- Many at once, and continuations ---


def test_batching_does_not_change_greedy_output(model, tokenizer):
    texts = ["if x:\n    <extra_id_0>\n", "a much longer text about <extra_id_0> and <extra_id_1> and the rest", GAPS_3]
    for batch_size in (1, 2, 16):
        config = GenerationConfig(max_new_tokens=6, batch_size=batch_size)
        together = generation.infill_batch(model, tokenizer, texts, config)
        assert [f.spans for f in together] == [generation.infill(model, tokenizer, t, config).spans for t in texts]


@pytest.mark.parametrize("answer", [generation.generate_batch, generation.infill_batch])
def test_samples_of_equal_prompts_do_not_depend_on_the_batch(model, tokenizer, answer):
    texts = ["import <extra_id_0>"] * 3 + ["x = 1<extra_id_0>"] + ["import <extra_id_0>"] * 2

    def draw(batch_size, some, **options):
        config = GenerationConfig(max_new_tokens=8, sampler=Sampler(1.0), batch_size=batch_size)
        return [x.text for x in answer(model, tokenizer, some, config, **options)]

    whole, repeats = draw(6, texts), Counter()
    assert len(set(whole)) == 6
    assert draw(2, texts) == whole
    assert draw(6, texts[:2], repeats=repeats) + draw(6, texts[2:], repeats=repeats) == whole  # as the command does
    assert draw(1, texts[3:4]) == whole[3:4]


@pytest.mark.parametrize("mode", ["none", "s2s", "nlg"])
@pytest.mark.parametrize("sentinel", ["", "<extra_id_0>"])
def test_continuations_in_all_forms_of_the_paper(model, tokenizer, mode, sentinel):
    text = "import os" + sentinel
    config = GenerationConfig(mode=mode, max_new_tokens=6)
    found = generation.generate(model, tokenizer, text, config)
    prompt = prompts.prompt_ids(tokenizer, text, mode)
    assert (prompt[-1] == tokenizer.symbols.sentinels[0]) == bool(sentinel)
    assert "<extra_id" not in found.text
    if sentinel:  # the same as a gap at the end
        filled = generation.infill(model, tokenizer, text, config)
        assert (found.text, found.logprob) == (filled.spans[0], pytest.approx(filled.logprob))


@pytest.mark.parametrize("constrained", [True, False])
def test_a_prompt_with_a_gap_is_continued_as_it_is_filled(model, tokenizer, constrained):
    """In the mode of `auto`, and with or without the grammar, each text of a batch for itself."""
    config = GenerationConfig(max_new_tokens=6, constrained=constrained)
    texts = ["import os<extra_id_0>", "import os"]
    gap, plain = generation.generate_batch(model, tokenizer, texts, config)
    filled = generation.infill(model, tokenizer, texts[0], config)
    assert (gap.text, gap.finish_reason) == (filled.spans[0], filled.finish_reasons[0])
    assert gap.logprob == pytest.approx(filled.logprob, rel=1e-4)
    assert plain.text == generation.generate(model, tokenizer, texts[1], config).text
    if constrained:
        pieces = generation.stream(model, tokenizer, texts[0], config)
        assert "".join(piece.text for piece in pieces) == gap.text


def test_a_continuation_sees_its_prompt_as_asked(model, tokenizer):
    a, b = (
        generation.generate(model, tokenizer, "import os, sys", GenerationConfig(attention=attention, max_new_tokens=6))
        for attention in ("prefix", "causal")
    )
    assert a.logprob != pytest.approx(b.logprob, abs=1e-3)


# --- Streams ---


@settings(max_examples=15, deadline=None)
@given(
    text=st.sampled_from([GAPS_3, "a <extra_id_0>", "no gap at all"]),
    seed=st.integers(0, 500),
    stop=st.sampled_from([(), ("e", "th"), ("\n",)]),
    temperature=st.sampled_from([0.0, 1.0, 4.0]),
    every=st.integers(1, 9),
)
def test_pieces_of_a_stream_make_the_spans(model, tokenizer, text, seed, stop, temperature, every):
    config = GenerationConfig(mode="nlg", max_new_tokens=7, sampler=Sampler(temperature), seed=seed, stop=stop)
    pieces = list(generation.stream(model, tokenizer, text, config, every=every))
    if text == "no gap at all":
        spans = [generation.generate(model, tokenizer, text, config).text]
    else:
        spans = generation.infill(model, tokenizer, text, config).spans
    assert ["".join(p.text for p in pieces if p.gap == i) for i in range(len(spans))] == spans
    assert [p.gap for p in pieces] == sorted(p.gap for p in pieces)
    assert all(p.text for p in pieces)


@pytest.mark.parametrize(
    ("text", "stop", "shown"),
    [
        ("a th", ("the",), "a "),
        ("a the", ("then", "hello"), "a "),
        ("aa", ("aab",), ""),
        ("ab", ("x",), "ab"),
        ("a\ufffd", (), "a"),
    ],
)
def test_a_stream_holds_back_text_that_may_still_change(text, stop, shown):
    assert generation._stable_prefix(text, stop) == shown


# --- Stop tables ---


def test_stop_tables_are_built_once(model, tokenizer, monkeypatch):
    built, build = [], Automaton.of
    monkeypatch.setattr(Automaton, "of", lambda *args: built.append(args[1]) or build(*args))
    config = GenerationConfig(max_new_tokens=1, stop=("~once~",))
    for _ in range(3):
        generation.generate(model, tokenizer, "a", config)
    assert built == [("~once~",)]


def test_without_stop_strings_no_bytes_are_read(model, tokenizer, monkeypatch):
    monkeypatch.setattr(generation, "_token_bytes", lambda _: pytest.fail("read"))
    assert generation.generate(model, tokenizer, "a", GenerationConfig(max_new_tokens=1)).finish_reason


# --- Bad input ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no gap", "has no gap"),
        ("", "is empty"),
        ((), "is empty"),
        ("<extra_id_1> <extra_id_0>", r"\[1, 0\].*each once, in order"),
        ("<extra_id_0> <extra_id_0>", "each once, in order"),
        ("<extra_id_3>", "each once, in order"),
        ("".join(f"<extra_id_{i}>" for i in range(101)), "101 gaps"),
        ([""] * 102, "101 gaps"),
        ("a \ud83d <extra_id_0>", r"the text has the lone surrogate U\+D83D at character 2"),
        ("word " * 300 + "<extra_id_0>", r"takes \d+ with BOS .*, the model's rows have 256: shorten it by \d+"),
    ],
)
def test_bad_prompts(model, tokenizer, text, message):
    with pytest.raises(ValueError, match=message):
        generation.infill(model, tokenizer, text)


def test_a_bad_text_is_named_before_anything_is_decoded(model, tokenizer, monkeypatch):
    monkeypatch.setattr(generation, "decode", lambda *_, **__: pytest.fail("decoded"))
    for wrong, message in (("none", "text 1 has no gap"), ("word " * 300 + "<extra_id_0>", "text 1 of .* shorten")):
        with pytest.raises(ValueError, match=message):
            generation.infill_batch(model, tokenizer, ["<extra_id_0>", wrong])


def test_other_bad_input(model, tokenizer):
    with pytest.raises(ValueError, match="example 0 has an empty target"):
        scoring.score(Decoder(CONFIG, key=jax.random.key(0)), [([1], [])])
    with pytest.raises(ValueError, match="text after a gap"):
        generation.generate(model, tokenizer, "a <extra_id_0> b")
    with pytest.raises(ValueError, match="a stream is one sample"):
        generation.stream(model, tokenizer, "a", GenerationConfig(sampler=Sampler(1.0), num_samples=2))
    with pytest.raises(ValueError, match="every is 0, expected a whole number of at least 1"):
        generation.stream(model, tokenizer, "a", every=0)
    with pytest.raises(
        ValueError, match="texts is the text 'ab', expected a sequence of texts: .text., or call `infill`"
    ):
        generation.infill_batch(model, tokenizer, "ab")
    with pytest.raises(ValueError, match="or call `generate`"):
        generation.generate_batch(model, tokenizer, "ab")
    with pytest.raises(ValueError, match="the text of 1500 tokens .* shorten it"):  # before the first piece is drawn
        generation.stream(model, tokenizer, "word " * 300 + "a")
    small = DecodingModel.of(Decoder(dataclasses.replace(CONFIG, vocab_size=400), key=jax.random.key(0)))
    with pytest.raises(ValueError, match="512 subwords, the model 400 embeddings"):
        generation.infill(small, tokenizer, "<extra_id_0>")
