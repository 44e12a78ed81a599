"""Plan which tokens and which denoiser fill each row, from document lengths alone."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from upalm import ul2r

MIN_CHUNK_TOKENS = 8
"""A row ends rather than hold a shorter chunk, unless its document ends there."""


class Segment(NamedTuple):
    """A planned segment: which denoiser takes which tokens of a window's stream."""

    denoiser_id: int
    start: int
    end: int


class RowPlan(NamedTuple):
    """Rows of segments, in the order in which the loader emits them."""

    segments: list[Segment]
    rows: list[tuple[int, int]]
    """First and last + 1 segment of each row."""


def plan_rows(
    pieces: Sequence[tuple[int, int]],
    segmenters: Sequence[ul2r.Segmenter],
    seq_len: int,
    weights: np.ndarray,
    rng: np.random.Generator,
) -> RowPlan:
    """Cut pieces of a stream into chunks that fill rows.

    The length of a segment is known before its noise is drawn. The last chunk of a row is therefore cut to the room
    that is left, and the next row continues where it ended: rows are full, and no token is dropped. A chunk is shorter
    than `MIN_CHUNK_TOKENS` only where its piece ends. Chunks of a denoiser with `shortest` below 1 have random lengths.

    Args:
        pieces: first and last + 1 token of each stretch that chunks may not leave.
        segmenters: one per denoiser.
        seq_len: positions per row.
        weights: share of examples of each denoiser, to any sum.
        rng: draws the denoisers and the order of the rows.
    """
    longest, lengths = [s.longest_chunks for s in segmenters], [s.segment_lengths for s in segmenters]
    shortest = [_shortest(s) for s in segmenters]
    draws = _denoiser_ids(weights, rng)
    segments, rows, first, room, denoiser_id = [], [], 0, seq_len, next(draws)
    for start, end in pieces:
        while start < end:
            n = min(longest[denoiser_id][room], end - start)
            if shortest[denoiser_id] < longest[denoiser_id][seq_len]:
                n = min(n, int(rng.integers(shortest[denoiser_id], longest[denoiser_id][seq_len], endpoint=True)))
            if n < MIN_CHUNK_TOKENS and n < end - start and room < seq_len:
                rows.append((first, len(segments)))  # the denoiser that was drawn begins the next row
                first, room = len(segments), seq_len
                continue
            segments.append(Segment(denoiser_id, start, start + n))
            room -= lengths[denoiser_id][n]
            start += n
            denoiser_id = next(draws)
    rows.append((first, len(segments)))
    return RowPlan(segments, [rows[i] for i in rng.permutation(len(rows))])  # else a batch holds one document only


def check_pairs(lengths: np.ndarray, segmenter: ul2r.Segmenter, seq_len: int) -> None:
    """Refuse supervised examples that do not fit a row, by their lengths.

    Raises:
        ValueError: how many are too long, and the longest.
    """
    n = lengths + segmenter.segment_length(0)
    if n_too_long := int((n > seq_len).sum()):
        raise ValueError(
            f"{n_too_long} of {len(n)} examples are longer than a row of {seq_len}, the longest has "
            f"{n.max()} tokens: use a longer seq_len, or shorten them."
        )


def plan_pairs(pieces: Sequence[tuple[int, int]], segmenter: ul2r.Segmenter, seq_len: int) -> RowPlan:
    """Plan one segment per supervised example, which `check_pairs` found to fit; a row ends where the next does not."""
    extra = segmenter.segment_length(0)
    segments, rows, first, room = [], [], 0, seq_len
    for start, end in pieces:
        if end - start + extra > room:
            rows.append((first, len(segments)))
            first, room = len(segments), seq_len
        segments.append(Segment(0, start, end))
        room -= end - start + extra
    return RowPlan(segments, [*rows, (first, len(segments))])


def _shortest(segmenter: ul2r.Segmenter) -> int:
    """Return the shortest chunk that is cut where there is room for a longer one."""
    longest = segmenter.longest_chunks[-1]
    return min(max(round(segmenter.denoiser.shortest * longest), MIN_CHUNK_TOKENS), longest)


def _denoiser_ids(weights: np.ndarray, rng: np.random.Generator) -> Iterator[int]:
    cumulative = np.cumsum(weights) / np.sum(weights)
    while True:
        yield from np.searchsorted(cumulative, rng.random(1024), side="right").tolist()
