"""The embedding table on a mesh: a device has some rows (of the vocabulary) and some columns (of the width) of it, and
some rows of the batch. What must be exchanged is written out here.

Dims: B batch rows, T positions, V vocabulary, D d_model.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from upalm.distributed.sharding import LogicalAxes, act_spec, axis_size, on_shards

AXES: LogicalAxes = ("vocab", "embed")
"""Logical axes of a table."""


class Split(NamedTuple):
    """Mesh axes that the batch and the table are split over: none without a mesh."""

    batch: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Any, n_rows: int) -> "Split":
        """None at all for a batch that the devices do not divide: XLA sees to that."""
        if n_rows % axis_size("batch"):
            return cls()
        axes = act_spec((n_rows, *table.shape), "batch", *AXES)
        return cls(*((names,) if isinstance(names, str) else tuple(names or ()) for names in axes))

    @property
    def table_spec(self) -> PartitionSpec:
        """Of the table."""
        return PartitionSpec(self.vocab or None, self.width or None)

    def rows(self, ndim: int) -> PartitionSpec:
        """Of an array of `ndim` axes whose first is the batch."""
        return PartitionSpec(self.batch or None, *[None] * (ndim - 1))


def lookup(table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
    """Rows of the table.

    On a mesh no part of the table moves: a device looks up the tokens of all rows in its part, and what it found goes
    to those whose rows they are; gradients come back the same way.
    """
    split = Split.of(table, len(tokens))
    if not any(split):
        return table[tokens].astype(dtype)
    by_position = split.vocab if tokens.shape[1] % axis_size("vocab") == 0 else ()
    out = PartitionSpec(split.batch or None, by_position or None, None)
    local = partial(_lookup, split=split, by_position=by_position, dtype=dtype)
    return on_shards(local, (split.table_spec, split.rows(2)), out, table, tokens)


def _lookup(table, tokens, split, by_position, dtype):
    tokens = lax.all_gather(tokens, split.width, tiled=True) if split.width else tokens
    row = tokens - first_row(table, split)
    is_here = (row >= 0) & (row < len(table))
    found = jnp.where(is_here[..., None], table[jnp.where(is_here, row, 0)].astype(dtype), 0)
    if by_position:
        found = lax.psum_scatter(found, by_position, scatter_dimension=1, tiled=True)
    elif split.vocab:
        found = lax.psum(found, split.vocab)
    return lax.all_to_all(found, split.width, 0, 2, tiled=True) if split.width else found


# --- Inside `on_shards` ---------------------------------------------------------------------------


def first_row(table: Array, split: Split) -> Int[Array, ""] | int:
    """Number of the first row that this device has."""
    return lax.axis_index(split.vocab) * len(table) if split.vocab else 0


def is_target(n_here: int, targets: Int[Array, "B T"], first: Any) -> Bool[Array, "B T v"]:
    """Where logits of rows `first` and after are those of the targets: compared, not gathered, since the gradient of a
    gather is a scatter, slow on CPU.
    """
    return first + jnp.arange(n_here)[None, None] == targets[..., None]


def all_gather_axis(table: Float[Array, "v d"], dtype: Any, split: Split) -> Float[Array, "v D"]:
    """With its whole width, in `dtype`."""
    table = table.astype(dtype)
    return lax.all_gather(table, split.width, axis=1, tiled=True) if split.width else table


def scattered(gradient_DV: Float[Array, "D v"], split: Split) -> Float[Array, "v d"]:
    """A gradient summed over all rows of the batch, and split as the table is."""
    gradient_DV = lax.psum(gradient_DV, tuple(a for a in split.batch if a not in split.width))
    if split.width:  # along the major axis, where parts are whole tiles of a TPU's memory
        gradient_DV = lax.psum_scatter(gradient_DV, split.width, tiled=True)
    return gradient_DV.T


def psum_if(tree: Any, axes: tuple[str, ...]) -> Any:
    """Sums over mesh axes, which may be none."""
    return jax.tree.map(lambda x: lax.psum(x, axes) if axes else x, tree)
