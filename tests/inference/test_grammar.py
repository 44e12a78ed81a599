"""Stop strings against `in`, the grammar against a parser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from upalm.inference.grammar import ANYTHING, FREE, Automaton, Grammar, Progress, TokenBytes
from upalm.ul2r.symbols import BOS_ID, EOS_ID, UNK_ID, Symbols

# --- Stop strings ---

LETTERS = st.text("ab", max_size=4)


@given(
    stop=st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    vocabulary=st.lists(LETTERS, min_size=1, max_size=5),
    data=st.data(),
)
def test_stop_strings_are_found_wherever_tokens_cut_them(stop, vocabulary, data):
    automaton = Automaton.of(TokenBytes.of([piece.encode() for piece in vocabulary]), stop)
    state, text = automaton.start, ""
    for token in data.draw(st.lists(st.integers(0, len(vocabulary) - 1), max_size=8)):
        state, text = automaton.table[state, token], text + vocabulary[token]
        assert automaton.stopped[state] == any(word in text for word in stop)
        assert automaton.to_go[state] == 0


def test_stop_strings_are_bytes_so_that_characters_may_be_split():
    euro = "€".encode()
    automaton = Automaton.of(TokenBytes.of([bytes([b]) for b in euro]), ["€"])
    state = automaton.start
    for token in range(3):
        assert not automaton.stopped[state]
        state = automaton.table[state, token]
    assert automaton.stopped[state]


# --- Grammar ---

V, MARKERS = 24, (23, 22, 21)  # subwords 0-23, of 26 embeddings; token 10 is "."


def walk(n_gaps, limits, max_tokens, chooser, stop=()):
    """All tokens that a chooser takes from what is allowed, until the row is done."""
    spans = Automaton.of(TokenBytes.of([b"." if i == 10 else b"x" for i in range(V)]), stop)
    row = (jnp.array([n_gaps]), jnp.array([limits]), jnp.array([max_tokens]), jnp.array([[0] * len(limits)]))
    grammar = Grammar.of(*row, symbols=Symbols(MARKERS, {}), spans=spans, n_embeddings=26)
    at, tokens = Progress.start(grammar.max_tokens), []
    while not at.done[0]:
        allowed = np.flatnonzero(ALLOWED(grammar, at)[0])
        tokens.append(int(chooser(allowed)))
        at = AFTER(grammar, at, jnp.array(tokens[-1:]))
    return tokens


ALLOWED, AFTER = jax.jit(Grammar.allowed), jax.jit(Grammar.after)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 4), min_size=3, max_size=3), st.integers(1, 3), st.randoms(use_true_random=False))
def test_every_walk_through_the_grammar_is_well_formed(limits, n_gaps, random):
    most = sum(limits[:n_gaps]) + n_gaps + 1
    tokens = walk(n_gaps, limits, most, random.choice)
    assert tokens[-1] == EOS_ID and EOS_ID not in tokens[:-1]
    assert [t for t in tokens if t in MARKERS] == list(MARKERS[:n_gaps])
    assert tokens[0] == MARKERS[0]
    assert not {BOS_ID, UNK_ID, 24, 25} & set(tokens)
    starts = [tokens.index(m) for m in MARKERS[:n_gaps]] + [len(tokens) - 1]
    for i in range(n_gaps):
        assert starts[i + 1] - starts[i] - 1 <= limits[i]


def test_a_stop_string_closes_its_span_alone():
    tokens = walk(2, [4, 4, 0], 11, lambda allowed: 10 if 10 in allowed else allowed[0], ["."])
    assert tokens == [MARKERS[0], 10, MARKERS[1], 10, EOS_ID]


@pytest.mark.parametrize(("n_gaps", "markers_allowed"), [(FREE, False), (ANYTHING, True)])
def test_text_has_no_sentinels_unless_anything_goes(n_gaps, markers_allowed):
    seen = set()
    tokens = walk(n_gaps, [5, 0, 0], 5, lambda allowed: seen.update(allowed.tolist()) or 9)
    assert tokens == [9] * 5
    assert bool(seen & set(MARKERS)) == markers_allowed
    assert EOS_ID in seen and not {BOS_ID, UNK_ID, 24, 25} & seen


def test_stop_strings_end_free_text_but_not_anything():
    assert walk(FREE, [5, 0, 0], 5, lambda _: 10, ["."]) == [10]
    assert walk(ANYTHING, [5, 0, 0], 5, lambda _: 10, ["."]) == [10] * 5
