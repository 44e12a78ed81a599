import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm import infer, ul2r
from upalm.batch import Batch
from upalm.model import Decoder, ModelConfig
from upalm.tokenizer import EOS_ID, Tokenizer

CONFIG = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=4, d_head=8, d_ff=64, seq_len=256)


@pytest.fixture(scope="module")
def model():
    return Decoder(CONFIG, key=jax.random.key(0))


def full_forward(model, prompt, new, attention):
    """Logits that predict each of `new`, without any cache."""
    batch = Batch.empty(1, len(prompt) + len(new))
    row = Batch(*(x[0] for x in batch))
    ul2r.write_segment(row, 0, ul2r.Example(np.asarray(prompt, int), np.asarray(new, int)), 1, 0, 0)
    logits = model(batch if attention == "prefix" else batch.causal())
    return np.array(logits[0, len(prompt) :])


@pytest.mark.parametrize("attention", ["prefix", "causal"])
@pytest.mark.parametrize("n_kv_heads", [1, 2])
def test_cached_decode_is_the_full_forward(attention, n_kv_heads):
    """Prompts of mixed length in one batch, each against its own uncached argmax."""
    model = Decoder(dataclasses.replace(CONFIG, n_kv_heads=n_kv_heads), key=jax.random.key(3))
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 400, n).tolist() for n in (0, 1, 7, 40, 33)]
    found = infer.decode(model, prompts, max_new_tokens=12, attention=attention)
    for prompt, completion in zip(prompts, found, strict=True):
        logits = full_forward(model, prompt, completion.tokens, attention)
        logits[:, [0, 2]] = -np.inf  # BOS and UNK are never chosen
        assert np.array_equal(logits.argmax(-1), completion.tokens)
        exact = infer.score(model, [(prompt, completion.tokens)], attention=attention)[0]
        np.testing.assert_allclose(completion.log_probs, exact, atol=1e-4)


def test_score_is_the_full_forward_whatever_the_batch(model):
    rng = np.random.default_rng(1)
    pairs = [(rng.integers(3, 400, a), rng.integers(3, 400, b)) for a, b in ((0, 5), (9, 1), (60, 20), (3, 70))]
    for batch_size in (1, 3, 8):
        for (prompt, target), got in zip(pairs, infer.score(model, pairs, batch_size=batch_size), strict=True):
            log_probs = jax.nn.log_softmax(jnp.asarray(full_forward(model, prompt, target, "prefix")))
            np.testing.assert_allclose(got, log_probs[np.arange(len(target)), target], atol=1e-4)


@settings(max_examples=12, deadline=None)
@given(
    gaps=st.lists(st.integers(1, 5), min_size=3, max_size=3),
    seed=st.integers(0, 1000),
    temperature=st.sampled_from([0.0, 1.0, 3.0]),
    max_span=st.sampled_from([1, 4]),
)
def test_constrained_infilling_is_always_well_formed(model, tokenizer, gaps, seed, temperature, max_span):
    texts = ["def f(a):\n" + "".join(f"    <extra_id_{i}>\n" for i in range(n)) for n in gaps]
    sampler = infer.Sampler(temperature)
    filled = infer.infill(model, tokenizer, texts, max_span_tokens=max_span, sampler=sampler, seed=seed)
    for text, n, f in zip(texts, gaps, filled, strict=True):
        assert f.format_ok
        assert len(f.spans) == n
        for i, span in enumerate(f.spans):
            text = text.replace(f"<extra_id_{i}>", span)
        assert f.text == text


def test_without_the_grammar_a_model_that_knows_no_format_does_not_keep_it(model, tokenizer):
    ignorant = jax.tree.map(lambda x: x * 0, model)  # every token is equally likely: greedy ends at once
    text = "a <extra_id_0> b"
    free = infer.infill(ignorant, tokenizer, [text], constrained=False, max_span_tokens=8)[0]
    assert (free.format_ok, free.spans) == (False, [""])
    assert infer.infill(ignorant, tokenizer, [text], max_span_tokens=8)[0].format_ok


def test_batching_does_not_change_greedy_output(model, tokenizer):
    texts = ["if x:\n    <extra_id_0>\n", "a much longer text about <extra_id_0> and <extra_id_1> and the rest" * 1]
    together = infer.infill(model, tokenizer, texts, max_span_tokens=6)
    alone = [infer.infill(model, tokenizer, [t], max_span_tokens=6)[0] for t in texts]
    assert [f.spans for f in together] == [f.spans for f in alone]


def test_sampling_is_reproducible_and_differs_by_seed(model):
    def draw(seed):
        return infer.decode(model, [[5, 6]] * 3, max_new_tokens=8, sampler=infer.Sampler(1.0), seed=seed)

    assert [c.tokens.tolist() for c in draw(1)] == [c.tokens.tolist() for c in draw(1)]
    assert [c.tokens.tolist() for c in draw(1)] != [c.tokens.tolist() for c in draw(2)]
    assert len({tuple(c.tokens.tolist()) for c in draw(1)}) == 3  # rows draw apart


def test_top_k_and_top_p_keep_the_most_likely():
    logits = jnp.log(jnp.array([[0.5, 0.3, 0.15, 0.05]]))
    keys = jax.random.split(jax.random.key(0), 500)

    def seen(sampler):
        return {int(sampler(logits, k[None])[0]) for k in keys}

    assert seen(infer.Sampler(1.0)) == {0, 1, 2, 3}
    assert seen(infer.Sampler(1.0, top_k=2)) == {0, 1}
    assert seen(infer.Sampler(1.0, top_p=0.7)) == {0, 1}
    assert seen(infer.Sampler(1.0, top_p=0.81)) == {0, 1, 2}
    assert seen(infer.Sampler()) == {0}


def test_prompts_have_mode_token_then_text_with_sentinels(tokenizer):
    ids, n_gaps = infer.prompt_ids(tokenizer, "a <extra_id_0> b", "nlu")
    s0 = tokenizer.symbols.sentinels[0]
    assert ids == [*tokenizer.encode("[NLU]"), *tokenizer.encode("a "), s0, *tokenizer.encode(" b")]
    assert n_gaps == 1


def parse(tokenizer, text, pieces, reason="eos"):
    ids = []
    for piece in pieces:
        ids += [piece] if isinstance(piece, int) else tokenizer.encode(piece)
    return infer._parse(tokenizer, text, 2, infer.Completion(np.array(ids), np.zeros(len(ids)), reason))


@pytest.mark.parametrize("denoiser", [*ul2r.UL2R[:2], *ul2r.UL2R_EOS[:2]], ids=repr)
def test_prompts_are_the_inputs_of_training(tokenizer, denoiser):
    tokenizer = Tokenizer(tokenizer.model, inputs_eos=denoiser.inputs_eos)
    segmenter = ul2r.Segmenter(denoiser, ul2r.Budget.joint(128), tokenizer.symbols)
    a, b = (np.array(tokenizer.encode(x)) for x in ("def f(x", "return x"))
    mask = np.r_[np.zeros(len(a), bool), True, True, np.zeros(len(b), bool)]
    example = segmenter.framed(ul2r.corrupt(np.r_[a, 7, 7, b], mask, tokenizer.symbols.sentinels))
    assert infer.prompt_ids(tokenizer, "def f(x<extra_id_0>return x", denoiser.mode)[0] == example.inputs.tolist()


def test_tolerant_parser(tokenizer):
    s0, s1, s2 = tokenizer.symbols.sentinels[:3]
    text = "x<extra_id_0>y<extra_id_1>z"
    good = parse(tokenizer, text, [s0, "one", s1, "two", EOS_ID])
    assert (good.spans, good.text, good.format_ok) == (["one", "two"], "xoneytwoz", True)
    for pieces, spans in [
        ([s0, "one", EOS_ID], ["one", ""]),  # a gap is missing
        ([s0, "one", s1, "two", s0, "again", EOS_ID], ["one", "two"]),  # the first counts
        ([s1, "two", s0, "one", EOS_ID], ["one", "two"]),  # out of order
        (["junk", s0, "one", s1, "two", EOS_ID], ["one", "two"]),
    ]:
        parsed = parse(tokenizer, text, pieces)
        assert (parsed.spans, parsed.format_ok) == (spans, False)
    ran_on = parse(tokenizer, text, [s0, "one", s1, "two", s2, "three", EOS_ID])
    assert (ran_on.spans, ran_on.format_ok) == (["one", "two"], True)  # closed, and cut there
    assert not parse(tokenizer, text, [s0, "one", s1, "two"], "length").format_ok


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("no gap", "has no gap"),
        ("<extra_id_1> <extra_id_0>", "each once, in order"),
        ("<extra_id_0> <extra_id_0>", "each once, in order"),
        ("".join(f"<extra_id_{i}>" for i in range(101)), "101 gaps"),
        ("word " * 300 + "<extra_id_0>", "shorten it by"),
    ],
)
def test_bad_prompts(model, tokenizer, text, message):
    with pytest.raises(ValueError, match=message):
        infer.infill(model, tokenizer, [text])


def test_other_bad_input(model, tokenizer):
    with pytest.raises(ValueError, match="mode is 'x'"):
        infer.prompt_ids(tokenizer, "a", "x")
    with pytest.raises(ValueError, match="empty target"):
        infer.score(model, [([1], [])])
    with pytest.raises(ValueError, match="no prompts"):
        infer.decode(model, [], max_new_tokens=3)
    with pytest.raises(ValueError, match="temperature"):
        infer.Sampler(-1.0)
