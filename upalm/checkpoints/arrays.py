"""Pytrees as named arrays: read, compare, checksum."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors


def to_arrays(tree: Any) -> dict[str, Any]:
    """Return the leaves of a tree by their path, such as `blocks.wq`."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): leaf for path, leaf in leaves}


def from_arrays(template: Any, arrays: dict[str, Any], where: object) -> Any:
    """Fill `template` with arrays by name, in its dtypes and layout.

    Args:
        template: tree of arrays or of their shapes.
        arrays: by path.
        where: of the arrays, for errors.

    Raises:
        ValueError: missing or surplus names, or another shape.
    """
    wanted = to_arrays(template)
    check_arrays(wanted, {name: array.shape for name, array in arrays.items()}, where)
    leaves = [jax.device_put(arrays[name].astype(leaf.dtype), leaf.sharding) for name, leaf in wanted.items()]
    return jax.tree.unflatten(jax.tree.structure(template), leaves)


def check_arrays(wanted: dict[str, Any], shapes: dict[str, tuple[int, ...]], where: object) -> None:
    """Refuse arrays whose names or shapes differ from a model's.

    Raises:
        ValueError: missing or surplus names, or another shape.
    """
    if missing := sorted(wanted.keys() - shapes.keys()):
        raise ValueError(f"{where} lacks {missing[:3]} ({len(missing)} arrays): it is of another model.")
    if surplus := sorted(shapes.keys() - wanted.keys()):
        raise ValueError(f"{where} has {surplus[:3]} ({len(surplus)} arrays) that the model lacks.")
    for name, leaf in wanted.items():
        if shapes[name] != leaf.shape:
            raise ValueError(f"{where}: {name} has shape {shapes[name]}, the model {leaf.shape}.")


@jax.jit
def checksums(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Checksum each array: its bits as integers, each times an odd number of its place, summed modulo 2^32.

    Any flipped bit changes the sum. The order of addition does not, so that every mesh gives the same.
    """

    def checksum(x: jax.Array) -> jax.Array:
        width = x.dtype.itemsize * 8
        bits = jax.lax.bitcast_convert_type(x, f"uint{width}").astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis in range(x.ndim):
            index = jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
            place = place * jnp.uint32(0x9E3779B1) + index
        return jnp.sum(bits * (2 * place + 1), dtype=jnp.uint32)

    return {name: checksum(jnp.asarray(x)) for name, x in arrays.items()}


def read_weights(template: Any, path: Path) -> Any:
    """Fill `template` from a safetensors file; each process reads only the parts of its devices.

    Raises:
        ValueError: a damaged file, missing or surplus names, or another shape.
    """

    def read(array: Any, leaf: Any) -> jax.Array:
        def part(index: tuple[slice, ...] | None) -> np.ndarray:
            return array[index].astype(leaf.dtype) if index else array[:].astype(leaf.dtype)

        if leaf.sharding is None:
            return jnp.asarray(part(None))
        return jax.make_array_from_callback(leaf.shape, leaf.sharding, part)

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            arrays = {name: file.get_slice(name) for name in file.keys()}
            check_arrays(to_arrays(template), {name: tuple(a.get_shape()) for name, a in arrays.items()}, path)
            leaves = [read(arrays[name], leaf) for name, leaf in to_arrays(template).items()]
    except safetensors.SafetensorError as e:
        raise ValueError(f"{path} is damaged or truncated: {e}.") from e
    return jax.tree.unflatten(jax.tree.structure(template), leaves)
