"""Where arrays lie on a mesh: one table for parameters, one for activations.

The mesh has the axes `data` and `model`; `jax.set_mesh` sets it, and without one nothing is split.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from upalm.layers import Block
from upalm.model import Decoder

PARAM_RULES = {"embed": "data", "heads": "model", "mlp": "model", "vocab": "model", "kv_heads": None, None: None}
"""Mesh axis of each logical axis that `AXES` names: FSDP over `data`, tensor parallelism over `model`."""


def make_mesh(n_data: int, n_model: int) -> Mesh:
    """A mesh of `n_data` x `n_model` devices, whose program XLA partitions.

    Raises:
        ValueError: there are not that many devices.
    """
    n = len(jax.devices())
    if n_data < 1 or n_model < 1 or n_data * n_model > n:
        raise ValueError(f"a mesh of {n_data} x {n_model} needs {n_data * n_model} devices, there are {n}.")
    devices = np.array(jax.devices()[: n_data * n_model]).reshape(n_data, n_model)
    return Mesh(devices, ("data", "model"), axis_types=(AxisType.Auto, AxisType.Auto))


def param_shardings(model: Decoder, mesh: Mesh | AbstractMesh) -> Decoder:
    """The sharding of every parameter, in the shape of the model (arrays, or shapes only).

    An axis that its mesh axis does not divide is not split.
    """

    def of(axes: tuple[str | None, ...], leaf: Any) -> NamedSharding:
        names = [PARAM_RULES[axis] for axis in axes]
        names = [None] * (leaf.ndim - len(names)) + names  # stacked leaves have a leading layer axis
        fits = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(names, leaf.shape, strict=True)]
        return NamedSharding(mesh, PartitionSpec(*fits))

    tables = {**Decoder.AXES, **{f"blocks.{k}": v for k, v in Block.AXES.items()}}

    def leaf_sharding(path, leaf):
        return of(tables[jax.tree_util.keystr(path, simple=True, separator=".")], leaf)

    return jax.tree_util.tree_map_with_path(leaf_sharding, model)


def shard(model: Decoder, mesh: Mesh) -> Decoder:
    """The model with its parameters laid out on the mesh."""
    return jax.device_put(model, param_shardings(model, mesh))


def split_rows(tree: Any, n_rows: int) -> Any:
    """Arrays of `n_rows` rows, each split over `data` if a mesh is set and its size divides them."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.tree.map(jax.numpy.asarray, tree)
    axis = "data" if n_rows % mesh.shape["data"] == 0 else None
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(axis)))
