"""`upalm plan`: cost of a recipe's step, as a table."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from etils import epy

from upalm import arguments
from upalm.cli import options
from upalm.planning.search import MeshPlans, Request, plan_every_mesh, plan_in_subprocess
from upalm.terminal import console
from upalm.training import recipes

with epy.lazy_imports():  # once the options are read: some import JAX
    from rich import table as rich_table

    from upalm.planning import planner, topology


@dataclass(frozen=True)
class Plan:
    """Plan a recipe on TPUs or GPUs not at hand, or on this machine.

    `upalm plan ul2r_540b 540b --topology v4:8x8x8` prints memory, FLOPs and collectives of a step, and its least time.
    Further options change the recipe, as for `upalm run`: `--mesh.model 8 --data.batch-size 64`.
    """

    recipe: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE [CONFIG]]")] = ()
    """Recipe, and one of its configs."""
    topology: str = "here"
    """A slice such as v4:8x8x8, a node of GPUs such as H100:8, or the devices of this machine."""
    slices: int = 1
    """Slices or nodes of that shape, joined by the network."""
    price: float | None = None
    """US dollars per device-hour; by default the list price of `upalm.distributed.chips`, where one is known."""
    decode: int = 0
    """Plan a decoding step of this many rows with full caches, instead of a training step."""
    find_mesh: bool = False
    """Try every mesh that divides, and rank those that fit."""
    list: bool = False
    """Name the topologies."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """File to write the plan to."""
    overrides: tyro.conf.Suppress[tuple[str, ...]] = ()

    @classmethod
    def parse(cls, words: Sequence[str]) -> "Plan":
        """Parse the options of `plan`; the other words belong to the recipe."""
        plan, overrides = arguments.parse_known(cls, words, "upalm plan")
        return replace(plan, overrides=tuple(overrides))

    def __call__(self) -> None:
        """Print the plan, or the ranked meshes.

        Raises:
            ValueError: unknown recipe, config or topology; a mesh that does not divide; no compiler.
        """
        if self.list:
            return _list()
        request, output = self._request(), console()
        with output.status(f"compiling {request}") as status:
            if self.find_mesh:
                meshes = plan_every_mesh(request, status.update)
            else:
                meshes = MeshPlans([plan_in_subprocess(request, status.update)], [])
        for plan in meshes.plans:
            plan["price"] = plan["price"] if self.price is None else self.price
        plan = meshes.plans[0]
        if self.json is not None:
            content = meshes.plans if self.find_mesh else plan
            self.json.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        for refusal in meshes.refusals:
            output.print(refusal)
        output.print(_ranking(meshes.plans) if self.find_mesh else _table(plan))
        if plan["fits"] is False:
            output.print(f"It does not fit. What helps: {planner.ADVICE}.")

    def _request(self) -> Request:
        if not self.recipe:
            raise ValueError(f"expected RECIPE CONFIG; the recipes are {', '.join(recipes.names())}.")
        recipe, *rest = self.recipe
        if not (configs := recipes.configs(recipe)):
            raise ValueError(f"recipe {recipe!r} has settings of its own, no configs to plan.")
        config, rest = recipes.split(configs, rest, f"upalm plan {recipe}")
        if rest:
            raise ValueError(f"upalm plan {' '.join(self.recipe)}: expected RECIPE CONFIG, no further words.")
        if self.slices < 1 or self.decode < 0:
            raise ValueError(f"--slices {self.slices} --decode {self.decode}: expected at least 1, and at least 0.")
        if self.price is not None and not 0 < self.price < math.inf:
            raise ValueError(f"--price {self.price}: expected US dollars per device-hour, above 0 and finite.")
        if self.topology == "here" and self.slices > 1:
            raise ValueError(f"--slices {self.slices} needs a --topology: `here` is the devices of this machine.")
        options.check_file("--json", self.json)
        return Request(recipe, config, self.overrides, self.topology, self.slices, self.decode)


# --- Output ---------------------------------------------------------------------------------------


def _table(plan: dict[str, Any]) -> "rich_table.Table":
    mesh = " x ".join(f"{n} {name}" for name, n in plan["mesh"].items()) or "one device"
    kind = f"decoding {plan['decodes']} rows, " if plan["decodes"] else ""
    title = f"{kind}{plan['recipe']} {plan['config']} on {plan['topology']}: {plan['devices']} devices, {mesh}"
    table = rich_table.Table(title=title, show_header=False)
    row, memory = table.add_row, plan["memory_gib"]
    row("parameters", f"{plan['params'] / 1e9:,.2f}B")
    for kind, gib in memory.items():
        row(f"memory: {kind}", f"{gib:,.2f} GiB per chip")
    if (capacity := plan["capacity_gib"]) is not None:
        spare = 1 - memory["total"] / capacity
        row("fits", f"yes, {spare:.0%} of {capacity:.0f} GiB to spare" if plan["fits"] else f"NO: {capacity:.0f} GiB")
        if plan["stands_in"] and plan["fits"] and memory["total"] > (share := JAX_SHARE_OF_GPU * capacity):
            row("", f"with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95; not in the {share:.1f} GiB that JAX takes by default")
    else:
        row("fits", "unknown: this device reports no memory, and is in no table")
    formula = "2N + 4LHQT" if plan["decodes"] else "6N + 12LHQT"
    row("FLOPs per step", f"{plan['flops_per_step']:.4g} by the papers' formula, {formula} per token")
    if plan["compiled_flops_per_step"]:
        compiled = f"{plan['compiled_flops_per_step']:.4g} in the compiled program"
        row("", compiled + f", {plan['remat_share']:.1%} of it rematerialisation")
    for cost in plan["collectives"]:
        if cost["gib"] >= 0.005:
            sent = f"{cost['count']:,} per step, {cost['gib']:,.2f} GiB sent per chip"
            row(f"{cost['kind']} over {cost['axes']}", sent)
    for name, seconds in plan["seconds"].items():
        row(f"bound by {name}", f"{seconds:.3f} s" + (" <- binds" if name == plan["bound_by"] else ""))
    if plan["step_seconds"]:
        row("step", f"at least {plan['step_seconds']:.3f} s; {plan['serial_seconds']:.3f} s if nothing overlaps")
        row("MFU", f"at most {plan['mfu']:.1%}")
        row("tokens/s", f"at most {plan['tokens_per_second']:,.0f}")
    if plan["stands_in"]:
        row("stand-in", STAND_IN)
    if plan["loops_counted_once"]:
        row("counted once", f"{plan['loops_counted_once']} loops of unknown length")
    if plan["step_seconds"] and not plan["decodes"]:
        hours, chip_hours = plan["run_hours"], plan["chip_hours"]
        cost = f"{hours:,.1f} hours, {chip_hours:,.0f} device-hours at least"
        row("whole recipe", f"{plan['run_tokens']:.3g} tokens: {cost}")
        fastest, slowest = plan["billion_hours"]
        row("1B tokens", f"{fastest:,.1f} hours at least; {slowest:,.1f} if nothing overlaps")
        if plan["price"] is not None:
            dollars = [hours * plan["devices"] * plan["price"] for hours in (fastest, slowest)]
            rate = f"at {plan['price']:g} US dollars per device-hour"
            row("", f"{dollars[0]:,.0f} US dollars at least; {dollars[1]:,.0f} if nothing overlaps, {rate}")
        if paper := PAPER.get(plan["recipe"]):
            row("the paper", paper)
    return table


JAX_SHARE_OF_GPU = 0.75
"""Share of a GPU's memory that JAX takes unless XLA_PYTHON_CLIENT_MEM_FRACTION says another."""

STAND_IN = (
    "compiled for TPU v5p, timed by the GPU's rates; a GPU's own program needs other memory. JAX takes three quarters "
    "of a GPU's memory, or with XLA_PYTHON_CLIENT_MEM_FRACTION=0.95 more"
)
"""Limits of a plan of GPUs."""

PAPER = {
    "ul2r_540b": "512 v4 chips, about 5 days: 61,000 chip-hours, 21.6 s per step (U-PaLM section 3)",
    "palm_540b": "6144 v4 chips, 46.2% MFU, 8.4M chip-hours in all (PaLM section 4 and appendix B)",
}
"""Cost of a recipe as the papers report it."""


def _ranking(plans: Sequence[dict[str, Any]]) -> "rich_table.Table":
    caption = STAND_IN if plans[0]["stands_in"] else None
    table = rich_table.Table(title="meshes that divide, those that fit first", caption=caption)
    for name in (
        "replica x data x model",
        "GiB per chip",
        "fits",
        "nothing overlaps, s",
        "everything overlaps, s",
        "bound by",
        "MFU",
    ):
        table.add_column(name, justify="right")
    for plan in plans:
        steps = ["" if s is None else f"{s:.3f}" for s in (plan["serial_seconds"], plan["step_seconds"])]
        mfu = "" if plan["mfu"] is None else f"{plan['mfu']:.1%}"
        fits = {True: "yes", False: "no", None: "unknown"}[plan["fits"]]
        sizes = " x ".join(str(n) for n in plan["mesh"].values())
        table.add_row(sizes, f"{plan['memory_gib']['total']:.2f}", fits, *steps, plan["bound_by"] or "", mfu)
    return table


def _list() -> None:
    print("here    the devices of this machine")
    for family in dict.fromkeys(name.split(":")[0] for name in topology.TOPOLOGIES):
        shapes = [name for name in topology.TOPOLOGIES if name.startswith(f"{family}:")]
        print(f"{family:7} {' '.join(shapes)}")
    print("Other shapes of these generations work if libtpu knows them. --slices N joins several.")
