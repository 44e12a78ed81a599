import numpy as np
import pytest

from upalm.data.readers import Document
from upalm.data.tokens import Tokens, encode


def test_documents_end_with_eos_and_keep_their_order():
    tokens = Tokens.from_documents([[5, 6], [], [7]], eos_id=3)
    assert tokens.ids.tolist() == [5, 6, 3, 3, 7, 3]
    assert tokens.lengths.tolist() == [3, 1, 2] and not tokens.is_supervised
    assert tokens.reorder(np.array([2, 0, 1])).ids.tolist() == [7, 3, 5, 6, 3, 3]


def test_pairs_know_where_their_targets_begin():
    tokens = Tokens.from_pairs([([5, 6], [7]), ([], [8, 9])])
    assert tokens.ids.tolist() == [5, 6, 7, 8, 9]
    assert tokens.n_inputs is not None and tokens.n_inputs.tolist() == [2, 0]


@pytest.mark.parametrize("ids", [[1.5], [-1], np.array([1 << 40]), ["a"], [[1], [2]], [True]])
def test_ids_that_are_no_int32_are_refused(ids):
    """NumPy would cut fractions and wrap large numbers."""
    with pytest.raises(ValueError, match="expected a row of integers"):
        Tokens.concatenate([ids])


def test_sentinels_in_supervised_examples_are_sentinels(tokenizer):
    """`<extra_id_0>` is a sentinel in supervised examples, as in prompts, and characters in plain text."""
    text, targets = "a <extra_id_0> b <extra_id_1>", "<extra_id_0> x y <extra_id_99>"
    pairs = encode(tokenizer, [Document("a", targets, text), Document("b", "plain", "no gap")])
    first, last = pairs.n_inputs[0], pairs.offsets[1]
    assert (tokenizer.decode(pairs.ids[:first]), tokenizer.decode(pairs.ids[first:last])) == (text, targets)
    numbers = [tokenizer.symbols.sentinels.index(i) for i in pairs.ids.tolist() if i in tokenizer.symbols.sentinels]
    assert numbers == [0, 1, 0, 99]
    plain = encode(tokenizer, [Document("a", text)])
    assert not tokenizer.is_sentinel(plain.ids).any() and tokenizer.decode(plain.ids[:-1]) == text
    with pytest.raises(ValueError, match=r"<extra_id_100> in .*expected <extra_id_0> to <extra_id_99>"):
        encode(tokenizer, [Document("a", "<extra_id_100>", "x")])
    inputs = "<extra_id_00> is text, <extra_id_0> is not"
    written = encode(tokenizer, [Document("a", "x", inputs)])
    assert int(tokenizer.is_sentinel(written.ids).sum()) == 1 and tokenizer.decode(written.ids).startswith(inputs)
