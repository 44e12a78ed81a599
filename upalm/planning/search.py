"""Make one plan in its own process, or plans for every mesh that divides."""

import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import tyro

from upalm import arguments
from upalm.training import recipes

T = TypeVar("T")

Report = Callable[[str], None]
"""Receives a line about the progress, about once per second."""


class Request(NamedTuple):
    """Step to plan, and the devices to plan it for."""

    recipe: str
    config: str
    overrides: tuple[str, ...]
    """Words of the command line that change the config."""
    topology: str
    n_slices: int
    n_decoded: int = 0
    """Rows of a decoding step; 0 plans a training step."""

    def __str__(self) -> str:
        slices = f"{self.n_slices} x " if self.n_slices > 1 else ""
        words = " ".join([self.recipe, self.config, *self.overrides, "on", slices + self.topology])
        return f"{words}, decoding {self.n_decoded} rows" if self.n_decoded else words


# --- Planning -------------------------------------------------------------------------------------


def build_plan(request: Request) -> dict[str, Any]:
    """Compile the step of a request and return its plan as JSON.

    Raises:
        ValueError: see `planner.plan` and `resolve_config`.
    """
    from upalm.planning.lowering import decoding, training
    from upalm.planning.planner import plan
    from upalm.planning.topology import target_of

    config, model = resolve_config(request)
    target = target_of(request.topology, request.n_slices)
    mesh, n = config.mesh.build(target.devices), request.n_decoded
    step = decoding(config, model, mesh, n) if n else training(config, model, mesh)
    named = {"recipe": request.recipe, "config": request.config, "decodes": n}
    return named | plan(step, model, target, mesh).to_json()


def _count_devices(request: Request) -> int:
    from upalm.planning.topology import target_of

    return len(target_of(request.topology, request.n_slices).devices)


def resolve_config(request: Request) -> tuple[Any, Any]:
    """Return the recipe's config with its overrides, and the shape of its model.

    Raises:
        ValueError: no such config, or a recipe that continues a checkpoint which is not named.
    """
    from upalm.checkpoints.folder import open_checkpoint
    from upalm.training.config import Scratch, TrainConfig

    configs, expected = recipes.contents(request.recipe)
    if request.config not in configs:
        raise ValueError(f"recipe {request.recipe!r} has no config {request.config!r}: it has {', '.join(configs)}.")
    config = _without_missing(configs[request.config][1])
    program = f"upalm plan {request.recipe} {request.config}"
    config = arguments.parse(type(config), request.overrides, program, default=config)
    if not isinstance(config, TrainConfig):  # settings of the recipe's own, which it turns into a run's
        if config.checkpoint == _UNNAMED:
            raise ValueError(f"recipe {request.recipe!r} continues any model: name one with --checkpoint FOLDER.")
        config = config.config()
    if isinstance(config.start, Scratch):
        return config, config.start.model
    if expected is not None and config.start.checkpoint == _UNNAMED:
        return config, config.start.reshaped(expected)
    if config.start.checkpoint == _UNNAMED:
        raise ValueError(f"recipe {request.recipe!r} continues any model: name one with --start.checkpoint FOLDER.")
    return config, config.start.reshaped(open_checkpoint(config.start.checkpoint)[0])


_UNNAMED = Path("unnamed")


def _without_missing(value: Any) -> Any:
    """Return a config whose required paths are `_UNNAMED`: a plan reads neither text nor weights."""
    if value is tyro.MISSING:
        return _UNNAMED
    if not is_dataclass(value):
        return value
    changed = {f.name: _without_missing(getattr(value, f.name)) for f in fields(value) if f.init}
    for name in {"source", "data"} & {name for name, current in changed.items() if current == _UNNAMED}:
        changed[name] = str(_UNNAMED)
    return replace(value, **{k: v for k, v in changed.items() if v is not getattr(value, k)})  # pyright: ignore


def plan_in_subprocess(request: Request, report: Report = lambda line: None) -> dict[str, Any]:
    """Plan in a process of its own: a compiler that runs out of memory takes its process with it.

    Raises:
        ValueError: see `build_plan`; or the process ended.
    """
    return _in_subprocess(build_plan, request, report)


def _in_subprocess(function: Callable[[Request], T], request: Request, report: Report) -> T:
    start = time.monotonic()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        with _environment({} if request.topology == "here" else WITHOUT_TPU):
            future = pool.submit(function, request)  # starts the only process, which has the variables from its start
        try:
            while not future.done():
                report(f"compiling {request}: {time.monotonic() - start:.0f} s (a minute or two in all)")
                wait([future], timeout=1)
            return future.result()
        except BrokenProcessPool as e:
            raise ValueError(
                f"the compiler ended while it worked on {request}: most likely this machine's memory ran out. Plan on "
                "one with more (540B took 2 GiB), or close what else uses it."
            ) from e


@contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for processes that start inside, which may import JAX at once, and put back the caller's."""
    with _ENVIRONMENT_LOCK:
        before = {name: os.environ.get(name) for name in variables}
        os.environ |= variables
        try:
            yield
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value


_ENVIRONMENT_LOCK = threading.Lock()
"""Held by the thread that changes the environment: another would take the changed one for the caller's."""

WITHOUT_TPU = {
    "JAX_PLATFORMS": "cpu",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",  # no chip is used, so several may compile at once
    # the compiler would ask the cloud's metadata server for these
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v4-8",
}


class MeshPlans(NamedTuple):
    """Plans for the meshes that divide."""

    plans: list[dict[str, Any]]
    """Plans that fit come first; among them, the fastest if nothing overlaps."""
    refusals: list[str]
    """One line per mesh that the compiler refused."""


def plan_every_mesh(request: Request, report: Report = lambda line: None) -> MeshPlans:
    """Plan for every mesh that divides, and rank the plans.

    Raises:
        ValueError: unknown topology, no compiler, no mesh divides, or the compiler refused them all.
    """
    n_devices = _in_subprocess(_count_devices, request, report)  # here, they would be held from the plans' processes
    plans, refusals = [], []
    for overrides in _meshes(request, n_devices):
        try:
            plans.append(plan_in_subprocess(request._replace(overrides=overrides), report))
        except ValueError as e:
            refusals.append(f"{' '.join(overrides)}: {e}")
    if not plans:
        reason = (
            f"no mesh of the {n_devices} devices divides heads, feed-forward, width and batch, and compiles: "
            "change the batch size, --accumulation or the topology."
        )
        raise ValueError("\n".join([*refusals, reason]))
    plans.sort(key=lambda p: (not p["fits"], p["serial_seconds"] or float("inf"), p["memory_gib"]["total"]))
    return MeshPlans(plans, refusals)


def _meshes(request: Request, n_devices: int) -> Iterator[tuple[str, ...]]:
    """Yield the overrides of every mesh that divides."""
    config, model = resolve_config(request)
    n_rows = request.n_decoded or max(config.data.batch_sizes()) // config.accumulation
    for replicas in sorted({1, request.n_slices}):
        for n_model in (m for m in range(1, model.d_ff + 1) if _divides_model(m, model)):
            n_data, rest = divmod(n_devices, replicas * n_model)
            if rest == 0 and n_data and n_rows % (replicas * n_data) == 0 and model.d_model % n_data == 0:
                sizes = {"replicas": replicas, "data": n_data, "model": n_model}
                mesh = [word for name, size in sizes.items() for word in (f"--mesh.{name}", str(size))]
                yield (*request.overrides, *mesh)


def _divides_model(n: int, model: Any) -> bool:
    return model.d_ff % n == 0 and (model.n_heads % n == 0 or model.d_head % n == 0)
