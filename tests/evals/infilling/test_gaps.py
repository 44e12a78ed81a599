"""Gaps in held-out text."""

import re

import pytest

from upalm.data.readers import Document
from upalm.evals.infilling import gaps


def documents(source_text):
    return [Document(f"d{i}", source_text[i * 5000 : (i + 1) * 5000]) for i in range(10)]


def whole(row):
    return row.parts[0] + "".join(s + p for s, p in zip(row.spans, row.parts[1:], strict=True))


def test_rows_are_cut_from_the_text(source_text):
    lines = gaps.cut_lines(documents(source_text), 30, lambda row: True)
    words = gaps.cut_words(documents(source_text), 30, lambda row: True)
    assert len(lines) == len(words) == 30
    for row in (*lines, *words):
        assert whole(row) in source_text
    assert all("\n" not in row.spans[0] and row.parts[0].endswith("\n") for row in lines)
    assert all(len(row.spans) == 3 for row in words)
    assert lines[:10] == gaps.cut_lines(documents(source_text), 10, lambda row: True)


def test_names_come_again_after_the_gap_and_not_before(source_text):
    rows = gaps.cut_names(documents(source_text), 30, lambda row: True)
    assert len(rows) == 30
    for row in rows:
        (before, after), (name,) = row.parts, row.spans
        assert whole(row) in source_text
        assert re.search(rf"\b{name}\b", after) and not re.search(rf"\b{name}\b", before)
        assert re.fullmatch(r"\w{3,}", name) and not re.match(r"\w", after) and not re.search(r"\w$", before)


def test_the_middle_gap_alone_has_the_others_filled(source_text):
    threes = gaps.cut_words(documents(source_text), 10, lambda row: True)
    for one, three in zip(gaps.fill_all_but_middle(threes), threes, strict=True):
        assert one.spans == three.spans[1:2] and whole(one) == whole(three)
        assert one.parts[0].endswith(three.parts[1]) and one.parts[1].startswith(three.parts[2])


def test_shuffled_suffixes_change_the_right_side_only(source_text):
    rows = gaps.cut_lines(documents(source_text), 20, lambda row: True)
    for row, other in zip(rows, gaps.shuffle_suffixes(rows), strict=True):
        assert (other.parts[0], other.spans) == (row.parts[0], row.spans)
        assert other.parts[1] != row.parts[1]
    rows = gaps.cut_words(documents(source_text), 20, lambda row: True)
    for row, other in zip(rows, gaps.shuffle_suffixes(rows), strict=True):
        assert (other.parts[:-1], other.spans) == (row.parts[:-1], row.spans)
        assert other.parts[-1] != row.parts[-1]


def test_suffixes_are_exchanged_between_two_distinct_rows_at_least(source_text):
    rows = gaps.cut_lines(documents(source_text), 2, lambda row: True)
    assert [row.parts[1] for row in gaps.shuffle_suffixes(rows)] == [row.parts[1] for row in rows[::-1]]
    for some in ([], rows[:1], rows[:1] * 3):
        with pytest.raises(ValueError, match=rf"{len(some)} drawn, \d distinct, expected at least 2 distinct ones"):
            gaps.shuffle_suffixes(some)


def test_gaps_that_do_not_fit_are_told_from_text_without_gaps(source_text):
    with pytest.raises(ValueError, match="none of .* gaps with 400 bytes before and 200 after them fits"):
        gaps.cut_lines(documents(source_text), 1, lambda row: False)
    blank = [Document("blank", "\n" * 9000)]
    with pytest.raises(ValueError, match="no place for a gap"):
        gaps.cut_lines(blank, 1, lambda row: True)
    with pytest.raises(ValueError, match="no held-out document is longer than 600"):
        gaps.cut_lines([Document("short", "x")], 1, lambda row: True)
