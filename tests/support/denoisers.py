"""Denoisers drawn at random, and the vocabulary that their tests use."""

from hypothesis import strategies as st

from upalm import ul2r

VOCAB_SIZE = 1000
SENTINELS = tuple(range(VOCAB_SIZE - 1, VOCAB_SIZE - 101, -1))
MODES = {"s2s": (11, 12), "nlu": (13,), "nlg": (14, 15, 16)}
LINES = {"line_breaks": (4, 9), "line_starts": (4, 9), "line_ends": (9,), "line_lasts": (4,)}
SYMBOLS = ul2r.Symbols(SENTINELS, MODES, **LINES)

SPANS = st.builds(
    ul2r.SpanCorruption,
    name=st.just("span"),
    mode=st.sampled_from(["nlu", "nlg", "none"]),
    mean_span=st.floats(1, 70),
    corruption_rate=st.floats(0.01, 0.99),
    max_spans=st.integers(1, 100),
    roll=st.booleans(),
)
GAPS = st.builds(
    ul2r.Gaps,
    name=st.just("gaps"),
    mode=st.sampled_from(["nlu", "none"]),
    mean_span=st.floats(1, 70),
    n_spans=st.integers(1, 100),
    inputs_eos=st.booleans(),
)
MISSING_LINES = st.builds(ul2r.Lines, name=st.just("line"), mean_span=st.floats(1, 70), inputs_eos=st.booleans())
DENOISERS = st.one_of(
    SPANS,
    GAPS,
    MISSING_LINES,
    st.builds(ul2r.PrefixLM, name=st.just("s"), mode=st.just("s2s"), corruption_rate=st.floats(0.01, 0.5)),
    st.just(ul2r.Causal(name="c")),
)
