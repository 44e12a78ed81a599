"""Make one plan in a process of its own, or rank every mesh that fits."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import fields, is_dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import tyro
from rich.console import Console

from upalm import arguments
from upalm.training import recipes


class Request(NamedTuple):
    """What to plan, for a process of its own."""

    recipe: str
    config: str
    overrides: tuple[str, ...]
    topology: str
    n_slices: int
    n_decoded: int = 0
    """Rows of a step of decoding; 0 is a step of training."""


# --- Planning -------------------------------------------------------------------------------------


def build_plan(request: Request) -> dict[str, Any]:
    """The plan, as JSON.

    Raises:
        ValueError: see `plan.plan`; or the recipe's checkpoint says nothing of the model's shape.
    """
    from upalm.planning.lowering import decoding, training
    from upalm.planning.planner import plan
    from upalm.planning.topology import target_of

    config, model = resolve_config(request)
    target = target_of(request.topology, request.n_slices)
    mesh, n = config.mesh.build(target.devices), request.n_decoded
    step = decoding(config, model, mesh, n) if n else training(config, model, mesh)
    found = plan(step, model, target, mesh)
    named = {"recipe": request.recipe, "config": request.config, "decodes": n}
    return named | found.to_json()


def resolve_config(request: Request) -> tuple[Any, Any]:
    """The recipe's config with its overrides, and the shape of its model."""
    from upalm.checkpoints.folder import open_checkpoint
    from upalm.training.config import Scratch

    configs, expected = recipes.contents(request.recipe)
    if request.config not in configs:
        raise ValueError(f"recipe {request.recipe!r} has no config {request.config!r}: it has {', '.join(configs)}.")
    config = _without_missing(configs[request.config][1])
    config = arguments.parse(
        type(config), request.overrides, f"upalm plan {request.recipe} {request.config}", default=config
    )
    if isinstance(config.start, Scratch):
        return config, config.start.model
    if expected is not None and config.start.checkpoint == _UNNAMED:
        return config, config.start.reshaped(expected)
    if config.start.checkpoint == _UNNAMED:
        raise ValueError(f"recipe {request.recipe!r} goes on from any model: give one with --start.checkpoint FOLDER.")
    return config, config.start.reshaped(open_checkpoint(config.start.checkpoint)[0])


_UNNAMED = Path("unnamed")


def _without_missing(value: Any) -> Any:
    """A config whose required paths are `_UNNAMED`: a plan reads neither text nor weights."""
    if value is tyro.MISSING:
        return _UNNAMED
    if not is_dataclass(value):
        return value
    changed = {f.name: _without_missing(getattr(value, f.name)) for f in fields(value) if f.init}
    if changed.get("source") == _UNNAMED:
        changed["source"] = str(_UNNAMED)
    return replace(value, **{k: v for k, v in changed.items() if v is not getattr(value, k)})  # pyright: ignore


def plan_in_subprocess(request: Request, console: Console) -> dict[str, Any]:
    """Alone, since a compiler that needs more memory than there is takes its process with it."""
    if request.topology != "here":
        os.environ |= _WITHOUT_TPU
    what = " ".join([request.recipe, request.config, *request.overrides, "on", request.topology])
    begun = time.monotonic()
    with (
        ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool,
        console.status(f"compiling {what} (a minute or two)") as status,
    ):
        future = pool.submit(build_plan, request)
        try:
            while not future.done():
                status.update(f"compiling {what}: {time.monotonic() - begun:.0f} s (a minute or two in all)")
                _wait(future)
            return future.result()
        except BrokenProcessPool as e:
            raise ValueError(
                f"the compiler ended while it worked on {what}: most likely this machine's memory ran out. Plan on one "
                "with more (540B took 2 GiB), or close what else uses it."
            ) from e


_WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so several may compile at once
    **{"TPU_SKIP_MDS_QUERY": "1", "TPU_WORKER_HOSTNAMES": "localhost", "TPU_ACCELERATOR_TYPE": "v4-8"},  # ask no cloud
}


def plan_every_mesh(request: Request, console: Console) -> list[dict[str, Any]]:
    """Plans for every mesh that divides; what the compiler refuses is said.

    Raises:
        ValueError: there is none, or it refused all.
    """
    found = []
    for overrides in _meshes(request):
        try:
            found.append(plan_in_subprocess(request._replace(overrides=overrides), console))
        except ValueError as e:
            console.print(f"{' '.join(overrides)}: {e}")
    if not found:
        raise ValueError(
            f"no mesh of the {_n_devices(request)} devices divides heads, feed-forward, width and batch, and compiles: "
            "change the batch size, --accumulation or the topology."
        )
    return found


def _wait(future: Any) -> None:
    try:
        future.exception(timeout=1)
    except TimeoutError:
        return


def _meshes(request: Request) -> Iterator[tuple[str, ...]]:
    """Overrides for every mesh that divides."""
    config, model = resolve_config(request)
    n = _n_devices(request)
    n_rows = request.n_decoded or max(config.data.batch_sizes()) // config.accumulation
    for replicas in sorted({1, request.n_slices}):
        for n_model in (m for m in range(1, model.n_heads + 1) if model.n_heads % m == 0 and model.d_ff % m == 0):
            n_data, rest = divmod(n, replicas * n_model)
            if rest == 0 and n_data and n_rows % (replicas * n_data) == 0 and model.d_model % n_data == 0:
                sizes = {"replicas": replicas, "data": n_data, "model": n_model}
                mesh = [word for name, size in sizes.items() for word in (f"--mesh.{name}", str(size))]
                yield (*request.overrides, *mesh)


def _n_devices(request: Request) -> int:
    if request.topology == "here":
        import jax

        return len(jax.devices())
    n = request.n_slices
    for size in request.topology.partition(":")[2].split("x"):
        n *= int(size) if size.isdigit() else 1
    return n
