"""`upalm plan`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from upalm import arguments
from upalm.planning.search import Request, plan_every_mesh, plan_in_subprocess
from upalm.terminal import console
from upalm.training import recipes

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True)
class Plan:
    """Plan a recipe on TPUs or GPUs that need not be at hand.

    `upalm plan ul2r_540b 540b --topology v4:8x8x8` prints memory, FLOPs and collectives of a step, and its least time.
    Further options change the recipe, as for `upalm run`: `--mesh.model 8 --data.batch-size 64`.
    """

    recipe: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE [CONFIG]]")] = ()
    """Recipe, and one of its configs."""
    topology: str = "here"
    """A slice such as v4:8x8x8, or the devices of this machine."""
    slices: int = 1
    """Slices of that shape, joined by the data-centre network."""
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
        """Options that are not of `plan` belong to the recipe."""
        options, overrides = arguments.parse_known(cls, words, "upalm plan")
        return replace(options, overrides=tuple(overrides))

    def __call__(self) -> None:
        """Print the plan, or the ranked meshes.

        Raises:
            ValueError: unknown recipe, config or topology; a mesh that does not divide; no compiler.
        """
        if self.list:
            return _list()
        request = self._request()
        output = console()
        if not self.find_mesh:
            result = plan_in_subprocess(request, output)
        else:
            result = plan_every_mesh(request, output)
            result.sort(key=lambda f: (not f["fits"], f["step_seconds"] or float("inf"), f["memory_gib"]["total"]))
        if self.json is not None:
            self.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        output.print(_ranking(result) if isinstance(result, Sequence) else _table(result))
        if not isinstance(result, Sequence) and result["fits"] is False:
            from upalm.planning.planner import ADVICE

            output.print(f"It does not fit. What helps: {ADVICE}.")

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
        if self.topology == "here" and self.slices > 1:
            raise ValueError(f"--slices {self.slices} needs a --topology: `here` is the devices of this machine.")
        if self.json is not None and not self.json.absolute().parent.is_dir():
            raise ValueError(f"--json {self.json}: there is no folder {self.json.parent}.")
        return Request(recipe, config, self.overrides, self.topology, self.slices, self.decode)


# --- Output ---------------------------------------------------------------------------------------


def _table(found: dict[str, Any]) -> "Table":
    from rich.table import Table

    mesh = " x ".join(f"{n} {name}" for name, n in found["mesh"].items()) or "one device"
    what = f"decoding {found['decodes']} rows, " if found["decodes"] else ""
    title = f"{what}{found['recipe']} {found['config']} on {found['topology']}: {found['devices']} devices, {mesh}"
    table = Table(title=title, show_header=False)
    row, memory = table.add_row, found["memory_gib"]
    row("parameters", f"{found['params'] / 1e9:,.2f}B")
    for kind, gib in memory.items():
        row(f"memory: {kind}", f"{gib:,.2f} GiB per chip")
    if (capacity := found["capacity_gib"]) is not None:
        spare = 1 - memory["total"] / capacity
        row("fits", f"yes, {spare:.0%} of {capacity:.0f} GiB to spare" if found["fits"] else f"NO: {capacity:.0f} GiB")
    else:
        row("fits", "unknown: this device's memory is in no table")
    formula = "2N + 4LHQT" if found["decodes"] else "6N + 12LHQT"
    row("FLOPs per step", f"{found['flops_per_step']:.4g} by the papers' formula, {formula} per token")
    if found["compiled_flops_per_step"]:
        compiled = f"{found['compiled_flops_per_step']:.4g} in the compiled program"
        row("", compiled + f", {found['remat_share']:.1%} of it rematerialisation")
    for e in found["collectives"]:
        if e["gib"] >= 0.005:
            row(f"{e['kind']} over {e['axes']}", f"{e['count']:,} per step, {e['gib']:,.2f} GiB sent per chip")
    for name, seconds in found["seconds"].items():
        row(f"bound by {name}", f"{seconds:.3f} s" + (" <- binds" if name == found["bound_by"] else ""))
    if found["step_seconds"]:
        row("step", f"at least {found['step_seconds']:.3f} s; {found['serial_seconds']:.3f} s if nothing overlaps")
        row("MFU", f"at most {found['mfu']:.1%}")
        row("tokens/s", f"at most {found['tokens_per_second']:,.0f}")
    if found["loops_counted_once"]:
        row("counted once", f"{found['loops_counted_once']} loops whose length the program does not say")
    if found["step_seconds"] and not found["decodes"]:
        hours, chip_hours = found["run_hours"], found["chip_hours"]
        row(
            "whole recipe",
            f"{found['run_tokens']:.3g} tokens: {hours:,.1f} hours, {chip_hours:,.0f} chip-hours at least",
        )
        if paper := PAPER.get(found["recipe"]):
            row("the paper", paper)
    return table


PAPER = {
    "ul2r_540b": "512 v4 chips, about 5 days: 61,000 chip-hours, 21.6 s per step (U-PaLM section 3)",
    "palm_540b": "6144 v4 chips, 46.2% MFU, 8.4M chip-hours in all (PaLM section 4 and appendix B)",
}
"""What the papers report of a recipe."""


def _ranking(found: Sequence[dict[str, Any]]) -> "Table":
    from rich.table import Table

    table = Table(title="meshes that divide, those that fit first")
    for name in ("replica x data x model", "GiB per chip", "fits", "step, s", "bound by", "MFU"):
        table.add_column(name, justify="right")
    for f in found:
        step = "" if f["step_seconds"] is None else f"{f['step_seconds']:.3f}"
        share = "" if f["mfu"] is None else f"{f['mfu']:.1%}"
        fits = {True: "yes", False: "no", None: "unknown"}[f["fits"]]
        sizes = " x ".join(str(n) for n in f["mesh"].values())
        table.add_row(sizes, f"{f['memory_gib']['total']:.2f}", fits, step, f["bound_by"] or "", share)
    return table


def _list() -> None:
    from upalm.planning.topology import TOPOLOGIES

    print("here    the devices of this machine")
    for family in dict.fromkeys(name.split(":")[0] for name in TOPOLOGIES):
        shapes = [name for name in TOPOLOGIES if name.startswith(f"{family}:")]
        print(f"{family:7} {' '.join(shapes)}")
    print("Others of these generations work, too, if libtpu knows them; --slices N joins several.")
