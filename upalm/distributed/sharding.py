"""Mesh, the two rule tables, and sharding constraints for parameters, activations and batch rows.

The mesh has three axes. `replica` counts slices, which the data-centre network joins and which each hold all
parameters. `data` splits rows of the batch, and parameters as in FSDP. `model` is tensor parallelism. `jax.set_mesh`
sets the mesh; without one nothing is split. XLA partitions the program from the constraints of this module.

Dims: A accumulation steps, B batch rows, T positions, D d_model.
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


PARAM_RULES = {
    "embed": "data",
    "heads": "model",
    "head_width": "model",  # where the mesh does not divide the heads
    "mlp": "model",
    "vocab": "model",
    "kv_heads": None,
    None: None,
}
"""Mesh axis of each logical axis of a parameter. A mesh axis splits the first one that it divides."""


ACT_RULES = {
    "batch": ("replica", "data"),
    "seq": ("model",),  # positions of the residual stream between blocks,
    "width": ("model",),  # or its width, if the mesh does not divide the positions
    "heads": ("model",),
    "head_width": ("model",),
    "mlp": ("model",),
    "vocab": ("model",),
    "embed": ("data",),  # width of the residual stream in decoding, split as the weights' width is
    None: (),
}
"""Mesh axes of each logical axis of an activation."""


LogicalAxes = tuple[str | None, ...]
"""A name for each axis of an array, or None for an axis that is never split."""


# --- Meshes ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class MeshConfig:
    """Layout of the devices. It changes the numbers of a run by rounding alone."""

    replicas: int = 1
    """Copies of all parameters, which exchange gradients: slices of a TPU pod."""
    data: int = 0
    """Devices that rows and parameters are split over (FSDP); 0 takes all remaining ones."""
    model: int = 1
    """Devices that heads, feed-forward and vocabulary are split over."""

    def build(self, devices: Sequence[Any] | None = None) -> Mesh | None:
        """The mesh of `devices`, by default of all; None for a single device.

        Raises:
            ValueError: the mesh needs more or fewer devices.
        """
        devices = jax.devices() if devices is None else devices
        n, rest = len(devices), self.replicas * self.model
        if min(self.replicas, self.model) < 1 or self.data < 0:
            raise ValueError(f"{self}: expected replicas and model of at least 1, data of at least 0.")
        data = self.data or max(n // rest, 1)
        if data * rest != n:
            raise ValueError(
                f"a mesh of {self.replicas} replicas x {data} data x {self.model} model needs {data * rest} devices, "
                f"there are {n}: choose numbers with that product."
            )
        return None if n == 1 else make_mesh(data, self.model, self.replicas, devices=devices)


def make_mesh(n_data: int, n_model: int, n_replicas: int = 1, *, devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `n_replicas` x `n_data` x `n_model` devices, whose program XLA partitions.

    Raises:
        ValueError: too few devices, or a mesh that the slices do not divide.
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
                f"{n_replicas} replicas and {n_data} data devices on {n_slices} slices: expected one replica per "
                "slice, or one replica and a number of data devices that the slices divide."
            )
        if n_replicas > 1:
            in_slice, slices = (1, n_data, n_model), (n_replicas, 1, 1)
        else:  # one copy of the parameters over all slices
            in_slice, slices = (1, n_data // n_slices, n_model), (1, n_slices, 1)
        grid = mesh_utils.create_hybrid_device_mesh(in_slice, slices, devices, allow_split_physical_axes=True)
    elif len(devices) == n:
        grid = mesh_utils.create_device_mesh(shape, devices, allow_split_physical_axes=True)
    else:
        grid = np.array(devices).reshape(shape)
    return Mesh(grid, AXES, axis_types=(AxisType.Auto,) * 3)


# --- Parameters -----------------------------------------------------------------------------------


def spec(axes: LogicalAxes, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Layout of a parameter. An axis that its mesh axis does not divide is not split."""
    split: list[str | None] = []
    for axis, n in zip(axes, shape, strict=True):
        name = PARAM_RULES[axis]
        split.append(name if name in mesh.shape and name not in split and n % mesh.shape[name] == 0 else None)
    return PartitionSpec(*split)


def specs(tree: Any, axes: Mapping[str, LogicalAxes], mesh: Mesh | AbstractMesh) -> Any:
    """Layout of each leaf: a parameter's if its path ends with the name, as an optimizer's moments do; else whole."""

    def leaf_spec(path: Any, leaf: Any) -> PartitionSpec:
        leaf_name = jax.tree_util.keystr(path, simple=True, separator=".")
        names = [name for name in axes if leaf_name == name or leaf_name.endswith(f".{name}")]
        logical = axes[max(names, key=len)] if names else ()
        return spec(logical, leaf.shape, mesh) if len(logical) == len(leaf.shape) else PartitionSpec()

    return jax.tree_util.tree_map_with_path(leaf_spec, tree)


def shardings(tree: Any, axes: Mapping[str, LogicalAxes], mesh: Mesh | AbstractMesh) -> Any:
    """`specs` as shardings on the mesh."""
    return jax.tree.map(lambda s: NamedSharding(mesh, s), specs(tree, axes, mesh), is_leaf=_is_spec)


def shapes(tree: Any, layout: Any) -> Any:
    """Shapes of a tree's arrays, with the sharding of each from a tree of the same structure."""
    return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, layout)


def _is_spec(x: Any) -> bool:
    return isinstance(x, PartitionSpec)


# --- Inside a program -----------------------------------------------------------------------------


def constrain(x: jax.Array, *axes: str | None) -> jax.Array:
    """Constrain an activation to ACT_RULES; a no-op without a mesh. `axes` are its logical axes."""
    if not has_mesh():
        return x
    return jax.lax.with_sharding_constraint(x, act_spec(x.shape, *axes))


def constrain_stream(x_BTD: jax.Array) -> jax.Array:
    """Constrain the residual stream between blocks: split positions over `model`, or else the width."""
    by_position = x_BTD.shape[1] % axis_size("seq") == 0
    return constrain(x_BTD, "batch", *(("seq", None) if by_position else (None, "width")))


def act_spec(shape: tuple[int, ...], *axes: str | None) -> PartitionSpec:
    """Layout of an activation. An axis that its mesh axes do not divide is not split."""
    mesh = jax.sharding.get_abstract_mesh()
    split = [ACT_RULES[axis] if n % axis_size(axis) == 0 else () for axis, n in zip(axes, shape, strict=True)]
    return PartitionSpec(*(tuple(a for a in names if mesh.shape.get(a, 1) > 1) or None for names in split))


def has_mesh() -> bool:
    """Whether a mesh is set."""
    return not jax.sharding.get_abstract_mesh().empty


def axis_size(axis: str | None) -> int:
    """Number of parts that the mesh splits a logical axis of an activation into."""
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(a, 1) for a in ACT_RULES[axis])


def on_shards(function: Callable[..., Any], in_specs: Any, out_specs: Any, *arguments: Any) -> Any:
    """Apply `function` to each device's part of the arguments; without a mesh, to the whole."""
    if not has_mesh():
        return function(*arguments)
    return jax.shard_map(function, in_specs=in_specs, out_specs=out_specs, check_vma=False)(*arguments)


def sum_over(axis: str, tree: Any) -> Any:
    """Sum over all parts of a logical axis, inside `on_shards`."""
    return jax.lax.psum(tree, ACT_RULES[axis])


def gather(tree: Any, axes: Mapping[str, LogicalAxes]) -> Any:
    """Gather a layer's parameters over `data`; the backward pass scatters their gradients again."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty or mesh.shape.get("data", 1) == 1:
        return tree
    split = specs(tree, axes, mesh)
    whole = jax.tree.map(lambda s: PartitionSpec(*(None if a == "data" else a for a in s)), split, is_leaf=_is_spec)
    return jax.tree.map(_gather, tree, whole, split)


@partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _gather(w: jax.Array, whole: PartitionSpec, split: PartitionSpec) -> jax.Array:
    return jax.lax.with_sharding_constraint(w, whole)


def _gather_forward(w: jax.Array, whole: PartitionSpec, split: PartitionSpec) -> tuple[jax.Array, None]:
    return _gather(w, whole, split), None


def _gather_backward(whole: PartitionSpec, split: PartitionSpec, _: None, gradient: jax.Array) -> tuple[jax.Array]:
    # first whole, then split: XLA makes one scatter of it, where a product with a split result becomes a long loop
    whole_gradient = jax.lax.with_sharding_constraint(gradient, whole)
    return (jax.lax.with_sharding_constraint(whole_gradient, split),)


_gather.defvjp(_gather_forward, _gather_backward)


def constrain_params(tree: Any, axes: Mapping[str, LogicalAxes]) -> Any:
    """Constrain parameters, gradients or optimizer state to PARAM_RULES; a no-op without a mesh."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return tree
    return jax.tree.map(jax.lax.with_sharding_constraint, tree, specs(tree, axes, mesh))


# --- Batch rows ------------------------------------------------------------------------------------


def row_sharding(mesh: Mesh | AbstractMesh) -> NamedSharding:
    """Layout of a batch [A, B, T]: its rows over `replica` and `data`."""
    return NamedSharding(mesh, PartitionSpec(None, ACT_RULES["batch"]))


def check_rows(mesh: Mesh | AbstractMesh, n_rows: int, accumulation: int) -> None:
    """Refuse a batch that the devices do not divide.

    Raises:
        ValueError: rows per microbatch are no multiple of the devices of replica x data.
    """
    n_shards, b = mesh.shape["replica"] * mesh.shape["data"], n_rows // accumulation
    if b % n_shards:
        raise ValueError(
            f"a batch of {n_rows} rows in {accumulation} microbatches has {b} rows each, no multiple of the "
            f"{n_shards} shards of replica x data: change batch_size, accumulation or the mesh."
        )


def rows_here(mesh: Mesh | None, n_rows: int, accumulation: int) -> np.ndarray:
    """Numbers of the batch's rows that this process's devices work on, for `accumulation` microbatches.

    Raises:
        ValueError: see `check_rows`.
    """
    if mesh is None:
        return np.arange(n_rows)
    check_rows(mesh, n_rows, accumulation)
    b = n_rows // accumulation
    indices = row_sharding(mesh).addressable_devices_indices_map((accumulation, b, 1))
    columns = np.unique(np.concatenate([np.arange(b)[index[1]] for index in indices.values() if index is not None]))
    return (np.arange(accumulation)[:, None] * b + columns[None]).ravel()


def to_devices(mesh: Mesh | None, rows: Any, numbers: np.ndarray, n_rows: int, accumulation: int) -> Any:
    """Arrays [A, B, T] over all devices, from this process's rows, which have these `numbers` in the batch."""
    b = n_rows // accumulation
    if mesh is None:
        return jax.tree.map(lambda x: x.reshape(accumulation, b, *x.shape[1:]), rows)
    sharding, first = row_sharding(mesh), np.arange(accumulation)[:, None] * b

    def to_global(x: np.ndarray) -> jax.Array:
        def part(index: Any) -> np.ndarray:
            part_numbers = first[index[0]] + np.arange(b)[index[1]][None]
            return x[np.searchsorted(numbers, part_numbers)]

        return jax.make_array_from_callback((accumulation, b, *x.shape[1:]), sharding, part)

    return jax.tree.map(to_global, rows)


def split_rows(tree: Any, n_rows: int) -> Any:
    """Put arrays of `n_rows` rows on the devices, split over `data` if a mesh is set and divides them."""
    mesh = jax.sharding.get_mesh()
    if mesh.empty:
        return jax.tree.map(jax.numpy.asarray, tree)
    axis = "data" if n_rows % mesh.shape["data"] == 0 else None
    return jax.device_put(tree, NamedSharding(mesh, PartitionSpec(axis)))
