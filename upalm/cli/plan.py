"""`upalm plan`."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

from upalm import arguments
from upalm.planning.search import Request, _tried, plan_in_subprocess


@dataclass(frozen=True)
class Plan:
    """Plan a recipe on TPUs or GPUs that need not be at hand.

    `upalm plan ul2r_540b 540b --topology v4:8x8x8` prints memory, FLOPs and collectives of a step, and its least time.
    Further options change the recipe, as for `upalm run`: `--mesh.model 8 --data.batch-size 64`.
    """

    recipe: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE CONFIG]")] = ()
    """Recipe, and one of its configs."""
    topology: str = "here"
    """A slice such as v4:8x8x8, or the devices of this machine."""
    slices: int = 1
    """Slices of that shape, joined by the data-centre network."""
    decode: int = 0
    """Plan a step of decoding for this many rows with full caches, not one of training."""
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
        if len(self.recipe) != 2:
            raise ValueError(f"upalm plan {' '.join(self.recipe)}: expected RECIPE CONFIG, see `upalm plan --help`.")
        if self.slices < 1 or self.decode < 0:
            raise ValueError(f"--slices {self.slices} --decode {self.decode}: expected at least 1, and at least 0.")
        if self.topology == "here" and self.slices > 1:
            raise ValueError(f"--slices {self.slices} needs a --topology: this machine's devices are what they are.")
        request = Request(*self.recipe, self.overrides, self.topology, self.slices, self.decode)
        console = Console(highlight=False)
        if not self.find_mesh:
            found = plan_in_subprocess(request, console)
            _show(found, console)
        else:
            found = _tried(request, console)
            found.sort(key=lambda f: (not f["fits"], f["step_seconds"] or float("inf"), f["memory_gib"]["total"]))
            _rank(found, console)
        if self.json is not None:
            self.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


# --- Output ---------------------------------------------------------------------------------------


def _show(found: dict[str, Any], console: Console) -> None:
    from upalm.planning.planner import ADVICE

    mesh = " x ".join(f"{n} {name}" for name, n in found["mesh"].items()) or "one device"
    what = f"decoding {found['decodes']} rows, " if found["decodes"] else ""
    title = f"{what}{found['recipe']} {found['config']} on {found['topology']}: {found['devices']} devices, {mesh}"
    table = Table(title=title, show_header=False)
    row, memory = table.add_row, found["memory_gib"]
    row("parameters", f"{found['params'] / 1e9:,.2f}B")
    for kind, gib in memory.items():
        row(f"memory: {kind}", f"{gib:,.2f} GiB a chip")
    if (capacity := found["capacity_gib"]) is not None:
        spare = 1 - memory["total"] / capacity
        row("fits", f"yes, {spare:.0%} of {capacity:.0f} GiB to spare" if found["fits"] else f"NO: {capacity:.0f} GiB")
    else:
        row("fits", "unknown: this device's memory is in no table")
    formula = "2N + 4LHQT" if found["decodes"] else "6N + 12LHQT"
    row("FLOPs a step", f"{found['flops_per_step']:.4g} by the papers' formula, {formula} a token")
    if found["compiled_flops_per_step"]:
        compiled = f"{found['compiled_flops_per_step']:.4g} in the compiled program"
        row("", compiled + f", {found['remat_share']:.1%} of it rematerialisation")
    for e in found["collectives"]:
        if e["gib"] >= 0.005:
            row(f"{e['kind']} over {e['axes']}", f"{e['count']:,} a step, {e['gib']:,.2f} GiB sent by a chip")
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
    console.print(table)
    if found["fits"] is False:
        console.print(f"It does not fit. What helps: {ADVICE}.")


PAPER = {
    "ul2r_540b": "512 v4 chips, about 5 days: 61,000 chip-hours, 21.6 s a step (U-PaLM section 3)",
    "palm_540b": "6144 v4 chips, 46.2% MFU, 8.4M chip-hours in all (PaLM section 4 and appendix B)",
}
"""What the papers report of a recipe."""


def _rank(found: list[dict[str, Any]], console: Console) -> None:
    table = Table(title="meshes that divide, those that fit first")
    for name in ("replica x data x model", "GiB a chip", "fits", "step, s", "bound by", "MFU"):
        table.add_column(name, justify="right")
    for f in found:
        step = "" if f["step_seconds"] is None else f"{f['step_seconds']:.3f}"
        share = "" if f["mfu"] is None else f"{f['mfu']:.1%}"
        fits = {True: "yes", False: "no", None: "unknown"}[f["fits"]]
        sizes = " x ".join(str(n) for n in f["mesh"].values())
        table.add_row(sizes, f"{f['memory_gib']['total']:.2f}", fits, step, f["bound_by"] or "", share)
    console.print(table)


def _list() -> None:
    from upalm.planning.topology import TOPOLOGIES

    print("here    the devices of this machine")
    for family in dict.fromkeys(name.split(":")[0] for name in TOPOLOGIES):
        shapes = [name for name in TOPOLOGIES if name.startswith(f"{family}:")]
        print(f"{family:7} {' '.join(shapes)}")
    print("Others of these generations work, too, if libtpu knows them; --slices N joins several.")
