"""Layout of every parameter and activation of the full sizes as text, which tests/golden/layouts.txt records.

PYTHONPATH=tests python -m support.layouts    # rewrites it
"""

from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, AxisType

from upalm.distributed.sharding import AXES
from upalm.model.config import PALM
from upalm.model.palm import LOGICAL_AXES, empty_model, param_shardings
from upalm.training.loss import loss_fn
from upalm.ul2r.rows import Batch

GOLDEN = Path(__file__).parents[1] / "golden" / "layouts.txt"
MESHES = {"540b": (1, 16, 32), "62b": (1, 8, 8), "8b": (1, 32, 2)}
ROWS = {"540b": 32, "62b": 16, "8b": 128}  # of a microbatch


def layouts(size: str) -> list[str]:
    mesh = AbstractMesh(MESHES[size], AXES, axis_types=(AxisType.Auto,) * 3)
    model = empty_model(PALM[size])
    lines = [f"# {size}: {' x '.join(map(str, MESHES[size]))} of {', '.join(AXES)}; {ROWS[size]} rows of 2048", ""]
    shardings = param_shardings(model, mesh)
    for name in LOGICAL_AXES:
        leaf, sharding = (_get(tree, name) for tree in (model, shardings))
        if leaf is not None:
            lines.append(f"parameter  {name:20} {_text(leaf)} {_spec(sharding.spec)}")
    batch = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((ROWS[size], 2048), x.dtype), Batch(*map(jnp.asarray, Batch.empty(1, 1)))
    )
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.make_jaxpr(lambda m, b: jax.grad(lambda m: loss_fn(m, b)[0])(m))(model, batch)
    found = Counter(_activations(traced.jaxpr))
    return [*lines, *(f"activation {line}  x{n}" for line, n in sorted(found.items())), ""]


def _activations(jaxpr: Any):
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "sharding_constraint":
            yield f"{_text(eqn.outvars[0].aval):32} {_spec(eqn.params['sharding'].spec)}"
        if eqn.primitive.name == "shard_map":
            for arrays, specs, way in (
                (eqn.invars, eqn.params["in_specs"], "in"),
                (eqn.outvars, eqn.params["out_specs"], "out"),
            ):
                for x, spec in zip(arrays, specs, strict=True):
                    if spec and spec[0] == AXES:
                        continue  # JAX's own, of a device each: what one half of a derivative hands to the other
                    yield f"{_text(x.aval):32} {_spec(spec)} ({way} of a part written out)"
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_jaxpr):
            if _is_jaxpr(value):
                yield from _activations(getattr(value, "jaxpr", value))


def _is_jaxpr(x: Any) -> bool:
    return hasattr(x, "eqns") or hasattr(x, "jaxpr")


def _get(tree: Any, name: str) -> Any:
    for part in name.split("."):
        tree = getattr(tree, part)
    return tree


def _text(x: Any) -> str:
    return f"{x.dtype}[{','.join(map(str, x.shape))}]"


def _spec(spec: Any) -> str:
    return "[" + ", ".join("-" if a is None else a if isinstance(a, str) else "+".join(a) for a in spec) + "]"


def text() -> str:
    return "\n".join(line for size in MESHES for line in layouts(size))


if __name__ == "__main__":
    GOLDEN.write_text(text())
    print(GOLDEN)
