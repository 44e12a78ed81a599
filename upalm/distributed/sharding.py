"""Where arrays lie on a mesh: one table for parameters, one for activations.

The mesh has the axes `replica` (slices, joined by the data-centre network, each with all parameters), `data` (rows of
the batch, and parameters split as in FSDP) and `model` (tensor parallelism). `jax.set_mesh` sets it; without one
nothing is split. XLA partitions the program, from the constraints that are made here.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

AXES = ("replica", "data", "model")


PARAM_RULES = {"embed": "data", "heads": "model", "mlp": "model", "vocab": "model", "kv_heads": None, None: None}
"""Mesh axis of each logical axis of a parameter."""


ACT_RULES = {
    "batch": ("replica", "data"),
    "seq": ("model",),  # of the residual stream, between blocks: its positions,
    "width": ("model",),  # or its width
    "heads": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
    "embed": ("data",),  # of the residual stream in decoding: as the weights' width
    None: (),
}
"""Mesh axes of each logical axis of an activation."""


LogicalAxes = tuple[str | None, ...]


# --- Meshes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeshConfig:
    """How the devices are laid out. The numbers of a run depend on it by rounding alone."""

    replicas: int = 1
    """Copies of all parameters, which exchange gradients: slices of a TPU pod."""
    data: int = 0
    """Devices that rows and parameters are split over (FSDP); 0 takes all that are left."""
    model: int = 1
    """Devices that heads, feed-forward and vocabulary are split over."""

    def build(self, devices: Sequence[Any] | None = None) -> Mesh | None:
        """The mesh of `devices`, or of all there are; None for a single one.

        Raises:
            ValueError: it does not divide the devices.
        """
        devices = jax.devices() if devices is None else devices
        n, rest = len(devices), self.replicas * self.model
        if min(self.replicas, self.model) < 1 or self.data < 0:
            raise ValueError(f"{self}: expected replicas and model at least 1, data at least 0.")
        data = self.data or max(n // rest, 1)
        if data * rest != n:
            raise ValueError(
                f"a mesh of {self.replicas} replicas x {data} data x {self.model} model needs {data * rest} devices, "
                f"there are {n}: choose numbers whose product that is."
            )
        return None if n == 1 else make_mesh(data, self.model, self.replicas, devices=devices)


def make_mesh(n_data: int, n_model: int, n_replicas: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `n_replicas` x `n_data` x `n_model` devices, whose program XLA partitions.

    Raises:
        ValueError: there are not that many devices, or slices do not divide the mesh.
    """
    devices = jax.devices() if devices is None else devices
    shape, n = (n_replicas, n_data, n_model), len(devices)
    if min(shape) < 1 or n_replicas * n_data * n_model > n:
        sizes = " x ".join(map(str, shape if n_replicas > 1 else shape[1:]))
        raise ValueError(f"a mesh of {sizes} needs {n_replicas * n_data * n_model} devices, there are {n}.")
    devices = devices[: n_replicas * n_data * n_model]
    if len({getattr(d, "slice_index", 0) for d in devices}) > 1:
        n_slices = len({d.slice_index for d in devices})
        if n_replicas not in (1, n_slices) or n_data % (n_slices // n_replicas):
            raise ValueError(
                f"{n_replicas} replicas and {n_data} data devices on {n_slices} slices: expected a replica for each "
                "slice, or one replica and data devices that the slices divide."
            )
        if n_replicas > 1:
            in_slice, slices = (1, n_data, n_model), (n_replicas, 1, 1)
        else:  # one copy of the parameters, split over all slices
            in_slice, slices = (1, n_data // n_slices, n_model), (1, n_slices, 1)
        laid = mesh_utils.create_hybrid_device_mesh(in_slice, slices, devices, allow_split_physical_axes=True)
    elif len(devices) == n:
        laid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        laid = np.array(devices).reshape(shape)
    return Mesh(laid, AXES, axis_types=(AxisType.Auto,) * 3)


# --- Parameters -----------------------------------------------------------------------------------


def spec(axes: LogicalAxes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Of a parameter. An axis that its mesh axis does not divide is not split."""
    names = [PARAM_RULES[axis] for axis in axes]
    fits = [a if a in mesh.shape and n % mesh.shape[a] == 0 else None for a, n in zip(names, shape, strict=True)]
    return PartitionSpec(*fits)


def specs(tree: Any, axes: Mapping[str, LogicalAxes], mesh: Mesh | AbstractMesh) -> Any:
    """Of every leaf whose path ends with a parameter's name, such as an optimizer's moments; others are whole."""

    def of(path: Any, leaf: Any) -> PartitionSpec:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        found = [n for n in axes if name == n or name.endswith(f".{n}")]
        longest = axes[max(found, key=len)] if found else ()
        return spec(longest, leaf.shape, mesh) if len(longest) == len(leaf.shape) else PartitionSpec()

    return jax.tree_util.tree_map_with_path(of, tree)


def shardings(tree: Any, axes: Mapping[str, LogicalAxes], mesh: Mesh | AbstractMesh) -> Any:
    """`specs` on a mesh."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs(tree, axes, mesh), is_leaf=_is_spec)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


# --- Inside a program -----------------------------------------------------------------------------


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """An activation laid out by ACT_RULES, if a mesh is set; `axes` are its logical axes."""
    if not has_mesh():
        return x
    return jax.lax.with_sharding_constraint(x, act_spec(x.shape, *axes))


def constrain_stream(x_BTD: jax.Array) -> jax.Array:
    """The residual stream between blocks: positions split over `model`, or the width if it does not divide those."""
    by_position = x_BTD.shape[1] % axis_size("seq") == 0
    return constrain(x_BTD, "batch", *(("seq", None) if by_position else (None, "width")))


def act_spec(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    """Of an activation. An axis that its mesh axes do not divide is not split."""
    mesh = jax.sharding.get_abstract_mesh()
    split = [ACT_RULES[axis] if n % axis_size(axis) == 0 else () for axis, n in zip(axes, shape, strict=True)]
    return PartitionSpec(*(tuple(a for a in names if mesh.shape.get(a, 1) > 1) or None for names in split))


def has_mesh() -> bool:
    """Whether one is set."""
    return not jax.sharding.get_abstract_mesh().empty


def axis_size(axis: str | None) -> int:
    """Number of parts that an activation's logical axis is split into."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(a, 1) for a in ACT_RULES[axis])


def on_shards(function: Callable[..., Any], in_specs: Any, out_specs: Any, *arguments: Any) -> Any:
    """`function` of each device's part of the arguments; of the whole without a mesh."""
    if not has_mesh():
        return function(*arguments)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)


def sum_over(axis: str, tree: Any) -> Any:
    """Inside `on_shards`: sums of all parts of a logical axis."""
    return jax.lax.psum(tree, ACT_RULES[axis])


def gather(tree: Any, axes: Mapping[str, LogicalAxes]) -> Any:
    """Parameters whole over `data`, as a layer needs them; their gradients are scattered again on the way back."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("data", 1) == 1:
        return tree
    kept = specs(tree, axes, mesh)
    whole = jax.tree.map(lambda s: PartitionSpec(*(None if a == "data" else a for a in s)), kept, is_leaf=_is_spec)
    return jax.tree.map(_gather, tree, whole, kept)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: jax.Array, whole: PartitionSpec, kept: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(w, whole)


def _gather_forward(w, whole, kept):
    return _gather(w, whole, kept), None


def _gather_backward(whole, kept, _, gradient):
    return (jax.lax.with_sharding_constraint(gradient, kept),)


_gather.defvjp(_gather_forward, _gather_backward)


def constrain_params(tree: Any, axes: Mapping[str, LogicalAxes]) -> Any:
    """Parameters, or what has their names, laid out by PARAM_RULES, if a mesh is set."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs(tree, axes, mesh))


# --- Rows -----------------------------------------------------------------------------------------


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Of a batch [A, B, T]."""
    return NamedSharding(mesh, PartitionSpec(None, ACT_RULES["batch"]))


def check_rows(mesh: Mesh | AbstractMesh, n_rows: int, accumulation: int) -> None:
    """Refuse a batch that the devices do not divide.

    Raises:
        ValueError: with all numbers.
    """
    n_shards, b = mesh.shape["replica"] * mesh.shape["data"], n_rows // accumulation
    if b % n_shards:
        raise ValueError(
            f"a batch of {n_rows} rows in {accumulation} microbatches has {b} rows each, no multiple of the "
            f"{n_shards} shards of replica x data: change batch_size, accumulation or the mesh."
        )


def rows_here(mesh: Mesh | None, n_rows: int, accumulation: int) -> np.ndarray:
    """Which rows of a batch this process's devices work on, given [A, B / A, T] microbatches.

    Raises:
        ValueError: see `check_rows`.
    """
    if mesh is None:
        return np.arange(n_rows)
    check_rows(mesh, n_rows, accumulation)
    b = n_rows // accumulation
    where = row_sharding(mesh).addressable_devices_indices_map((accumulation, b, 1))
    columns = np.unique(np.concatenate([np.arange(b)[index[1]] for index in where.values() if index is not None]))
    return (np.arange(accumulation)[:, None] * b + columns[None]).ravel()


def to_devices(mesh: Mesh | None, rows: Any, numbers: np.ndarray, n_rows: int, accumulation: int) -> Any:
    """[A, B / A, T] arrays over all devices, from the rows `numbers` that this process has."""
    b = n_rows // accumulation
    if mesh is None:
        return jax.tree.map(lambda x: x.reshape(accumulation, b, *x.shape[1:]), rows)
    sharding, first = row_sharding(mesh), np.arange(accumulation)[:, None] * b

    def spread(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            wanted = first[index[0]] + np.arange(b)[index[1]][None]
            return x[np.searchsorted(numbers, wanted)]

        return jax.make_array_from_callback((accumulation, b, *x.shape[1:]), sharding, part)

    return jax.tree.map(spread, rows)


def split_rows(tree: Any, n_rows: int) -> Any:
    """Arrays of `n_rows` rows, each split over `data` if a mesh is set and its size divides them."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.tree.map(jax.numpy.asarray, tree)
    axis = "data" if n_rows % mesh.shape["data"] == 0 else None
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(axis)))
