"""Embedding table sharded over vocabulary and width.

On a mesh a device has some rows (of the vocabulary) and some columns (of the width) of the table, and some rows of the
batch. The collectives between them are written out here.

Dims: B batch rows, T positions, V vocabulary, D d_model; v and d are one device's part of V and D.
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
    """Mesh axes that split the batch and the table; none without a mesh."""

    batch: tuple[str, ...] = ()
    vocab: tuple[str, ...] = ()
    width: tuple[str, ...] = ()

    @classmethod
    def of(cls, table: Any, n_rows: int) -> "Split":
        """The split of `table` and a batch of `n_rows`; XLA partitions a batch that the devices do not divide."""
        if n_rows % axis_size("batch"):
            return cls()
        axes = act_spec((n_rows, *table.shape), "batch", *AXES)
        return cls(*((names,) if isinstance(names, str) else tuple(names or ()) for names in axes))

    @property
    def table_spec(self) -> PartitionSpec:
        """Layout of the table."""
        return PartitionSpec(self.vocab or None, self.width or None)

    def rows(self, ndim: int) -> PartitionSpec:
        """Layout of an array of `ndim` axes whose first is the batch."""
        return PartitionSpec(self.batch or None, *[None] * (ndim - 1))


def lookup(table: Float[Array, "V D"], tokens: Int[Array, "B T"], dtype: str) -> Float[Array, "B T D"]:
    """Embeddings of tokens, in `dtype`.

    On a mesh no part of the table moves. Each device looks up all tokens in its part of the table, and sends the
    embeddings to the devices of their rows. Gradients return the same way.
    """
    split = Split.of(table, len(tokens))
    if not any(split):
        return table[tokens].astype(dtype)
    by_position = split.vocab if tokens.shape[1] % axis_size("vocab") == 0 else ()
    out = PartitionSpec(split.batch or None, by_position or None, None)
    local = partial(_lookup, split=split, by_position=by_position, dtype=dtype)
    return on_shards(local, (split.table_spec, split.rows(2)), out, table, tokens)


def _lookup(
    table: Float[Array, "v d"], tokens: Int[Array, "b T"], split: Split, by_position: tuple[str, ...], dtype: str
) -> Float[Array, "b t D"]:
    """Embeddings of one device's rows: summed over parts of the vocabulary, joined over parts of the width."""
    tokens = lax.all_gather(tokens, split.width, tiled=True) if split.width else tokens
    row = tokens - first_row(table, split)
    is_local = (row >= 0) & (row < len(table))
    x = jnp.where(is_local[..., None], table[jnp.where(is_local, row, 0)].astype(dtype), 0)
    if by_position:
        x = lax.psum_scatter(x, by_position, scatter_dimension=1, tiled=True)
    elif split.vocab:
        x = lax.psum(x, split.vocab)
    return lax.all_to_all(x, split.width, 0, 2, tiled=True) if split.width else x


# --- Inside `on_shards` ---------------------------------------------------------------------------


def first_row(table: Array, split: Split) -> Int[Array, ""] | int:
    """Number of this device's first row of the table."""
    return lax.axis_index(split.vocab) * len(table) if split.vocab else 0


def is_target(n_local: int, targets: Int[Array, "B T"], first: Any) -> Bool[Array, "B T v"]:
    """Mask of the targets among the `n_local` rows from `first` on.

    Compared, not gathered, because the gradient of a gather is a scatter, which is slow on CPUs.
    """
    return first + jnp.arange(n_local)[None, None] == targets[..., None]


def all_gather_axis(table: Float[Array, "v d"], dtype: Any, split: Split) -> Float[Array, "v D"]:
    """Gather a table's whole width, in `dtype`."""
    table = table.astype(dtype)
    return lax.all_gather(table, split.width, axis=1, tiled=True) if split.width else table


def scatter_gradient(gradient_DV: Float[Array, "D v"], split: Split) -> Float[Array, "v d"]:
    """Sum a gradient over all rows of the batch, and split it as the table."""
    gradient_DV = lax.psum(gradient_DV, tuple(a for a in split.batch if a not in split.width))
    if split.width:  # along the major axis, where parts are whole tiles of a TPU's memory
        gradient_DV = lax.psum_scatter(gradient_DV, split.width, tiled=True)
    return gradient_DV.T


def psum_if(tree: Any, axes: tuple[str, ...]) -> Any:
    """Sum over mesh axes; the identity when there are none."""
    return jax.tree.map(lambda x: lax.psum(x, axes) if axes else x, tree)
