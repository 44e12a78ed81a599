"""The tables of docs/plans.md on machines for rent: UL2R of open models, each step compiled by the TPU compiler.

    python benchmarks/rentable.py [WORDS ...]    # all rows, or those that have these words in them; a minute each

The step is that of the recipe `ul2r`: 32 rows of 2048, factored second moments. For a checkpoint, `upalm plan ul2r
gpu80 --checkpoint FOLDER --topology H100:8` plans it; here the shapes are those of the models' config.json. Figures
are kept in tests/golden/rentable.json.
"""

import json
import math
import os
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from upalm.planning.search import WITHOUT_TPU

os.environ |= WITHOUT_TPU

import jax  # noqa: E402
import tyro  # noqa: E402

from upalm.data.config import DataConfig  # noqa: E402
from upalm.distributed.chips import CHIPS, GIB, Chip  # noqa: E402
from upalm.distributed.sharding import MeshConfig  # noqa: E402
from upalm.model.config import ModelConfig  # noqa: E402
from upalm.planning import plan, planner, target_of  # noqa: E402
from upalm.planning.hlo import Collective, Work  # noqa: E402
from upalm.planning.lowering import training  # noqa: E402
from upalm.training.config import Scratch, TrainConfig  # noqa: E402
from upalm.training.optim import Adafactor, Schedule  # noqa: E402

_RMS: dict[str, Any] = dict(
    norm_offset=0.0, final_norm_scale=True, logit_scale=1.0, tied_head=False, compute_dtype="bfloat16"
)
_LLAMA: dict[str, Any] = dict(
    vocab_size=128_256, d_model=4096, n_layers=32, n_heads=32, n_kv_heads=8, d_head=128, d_ff=14_336
)
_QWEN: dict[str, Any] = dict(
    vocab_size=151_936, d_model=5120, n_layers=64, n_heads=64, n_kv_heads=8, d_head=128, d_ff=25_600
)
_OLMO: dict[str, Any] = dict(
    vocab_size=100_352, d_model=5120, n_layers=64, n_heads=40, n_kv_heads=8, d_head=128, d_ff=27_648
)
MODELS = {
    "Llama 3.1 8B": ModelConfig(**_LLAMA, **_RMS, block="sequential"),
    "Qwen3 32B": ModelConfig(**_QWEN, **_RMS, block="sequential", qk_norm="shared"),
    "OLMo 2 32B": ModelConfig(**_OLMO, **_RMS, block="post_norm", qk_norm="flat"),
}


class Row(NamedTuple):
    """A step to plan."""

    model: str
    topology: str
    n_slices: int = 1
    n_model: int = 1
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    timed_from: str = ""
    """Topology of the row whose compiled step this one has, too: the same number of GPUs of another kind."""

    @property
    def title(self) -> str:
        slices = f"{self.n_slices} x " if self.n_slices > 1 else ""
        return f"{self.model} on {slices}{self.topology}"


RENTED = (
    Row("Llama 3.1 8B", "v5e:4x8"),
    Row("Llama 3.1 8B", "v6e:4x4"),
    Row("Llama 3.1 8B", "tpu7x:2x2x1"),
    Row("Llama 3.1 8B", "H100:8"),
    Row("Llama 3.1 8B", "H200:8", timed_from="H100:8"),
    Row("Llama 3.1 8B", "B200:8", timed_from="H100:8"),
    *(
        row
        for model in ("Qwen3 32B", "OLMo 2 32B")
        for row in (
            Row(model, "v5e:8x16", n_model=4),
            Row(model, "v6e:8x8", n_model=2),
            Row(model, "tpu7x:2x2x2", n_model=2),
            Row(model, "H100:8", remat="full"),
            Row(model, "H200:8", remat="full", timed_from="H100:8"),
            Row(model, "B200:8", remat="full", timed_from="H100:8"),
        )
    ),
)
"""The smallest machines that hold the step with 10% to spare, or repeat nothing where a larger one costs no more."""

ROWS, SEQ_LEN = 32, 2048
"""Rows of a step, and tokens of a row."""

CHIPS_OF_V6E = (8, 16, 32, 64, 128, 256, 512)
"""Chips that share the same batch of Llama 3.1 8B."""

SLICES_OF_V6E = {
    math.prod(map(int, shape.split("x"))): f"v6e:{shape}" for shape in "2x4 4x4 4x8 8x8 8x16 16x16".split()
}
"""Slices by their chips."""

TITLE_OF_16 = "Llama 3.1 8B on v6e:4x4"
"""The compiled row that `scaled` begins with."""

COMPILED_FOR_32 = Row("Llama 3.1 8B", "v6e:4x8")
"""The step that `scaled` is compared with."""

ROOT = Path(__file__).parent.parent
GOLDEN, PAGE = ROOT / "tests" / "golden" / "rentable.json", ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- made by benchmarks/rentable.py: begin -->", "<!-- rentable: end -->"


def planned(row: Row) -> dict[str, Any]:
    """Compile the step of a row."""
    jax.clear_caches()
    model = replace(MODELS[row.model], remat=row.remat)
    config = TrainConfig(
        Path("unnamed"),
        Scratch(model),
        DataConfig(tyro.MISSING, "ul2r_infill", seq_len=SEQ_LEN, batch_size=ROWS, joint_budget=True),
        Adafactor(Schedule("cosine", peak=1e-4, final=1e-6), factored=True),
        n_steps=20_000,
        mesh=MeshConfig(model=row.n_model),
    )
    target = target_of(row.topology, row.n_slices)
    mesh = config.mesh.build(target.devices)
    return {"remat": row.remat} | plan(training(config, model, mesh), model, target, mesh).to_json()


def retimed(f: dict[str, Any], row: Row) -> dict[str, Any]:
    """Return the plan of another row's step by the rates of this row's GPUs."""
    before, now = _chip(row.timed_from), _chip(row.topology)
    rates = {"compute": now.flops / before.flops, "memory": now.bandwidth / before.bandwidth}
    rates |= {"interconnect": now.link * now.links / (before.link * before.links)}
    seconds = {name: n / rates[name] for name, n in f["seconds"].items()}
    step, serial = max(seconds.values()), sum(seconds.values())
    return f | {
        "topology": row.topology,
        "seconds": seconds,
        "bound_by": max(seconds, key=lambda name: seconds[name]),
        "step_seconds": step,
        "serial_seconds": serial,
        "billion_hours": [1e9 / f["tokens_per_step"] * n / 3600 for n in (step, serial)],
        "capacity_gib": now.memory / GIB,
        "fits": f["memory_gib"]["total"] <= now.memory / GIB,
    }


def _chip(topology: str) -> Chip:
    return CHIPS[topology.partition(":")[0]]


def rented(found: dict[str, dict]) -> str:
    lines = [
        "| model and machine | devices | mesh | remat | GiB | to spare | step, s | nothing overlaps, s | bound by "
        "| hours per 1B tokens | US dollars per device-hour | US dollars per 1B tokens |",
        "|---|---:|---|---|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for row in RENTED:
        f = found.get(row._replace(topology=row.timed_from).title if row.timed_from else row.title)
        if f is None or f["step_seconds"] is None:
            continue
        f = retimed(f, row) if row.timed_from else f
        hours, total, price = f["billion_hours"], f["memory_gib"]["total"], _chip(row.topology).price
        dollars = "" if price is None else " to ".join(f"{h * f['devices'] * price:,.0f}" for h in hours)
        lines.append(
            f"| {row.title} | {f['devices']} | {' x '.join(map(str, f['mesh'].values()))} | {f['remat']} | {total:.1f} "
            f"| {1 - total / f['capacity_gib']:.0%} | {f['step_seconds']:.2f} | {f['serial_seconds']:.2f} | "
            f"{f['bound_by']} | {' to '.join(f'{h:.1f}' for h in hours)} | "
            f"{'' if price is None else format(price, 'g')} | {dollars} |"
        )
    return "\n".join(lines)


def scaled(f: dict[str, Any], n: int) -> tuple[Any, dict[str, float]]:
    """Return the mesh of n chips of v6e and the bounds of the step on them, from the plan of 16.

    Products are shared by all chips, and so is main memory's traffic, but for that of whole weights: each chip writes
    what it gathers and reads it in a product, and writes gradients in a product and reads them to sum them, however
    many chips there are. What is gathered and summed is what the compiled program sends. A model axis, which more than
    32 chips need for 32 rows, divides these weights. Over it go ten exchanges of a chip's row per layer: a gather and a
    scatter of either branch in the forward pass, and two gathers and a scatter in the backward pass. Links are counted
    by the planner's rule, as is the part of the weights that crosses the network between slices.
    """
    model, n_slices, n_model = MODELS["Llama 3.1 8B"], max(n // 256, 1), max(n // ROWS, 1)
    mesh = MeshConfig(model=n_model).build(target_of(SLICES_OF_V6E[n // n_slices], n_slices).devices)
    assert mesh is not None
    before, n_data = f["mesh"]["data"], mesh.shape["data"]
    sent = f["collective_bytes"] / (before - 1) * before * (n_data - 1) / n_data / n_model
    stream = 10 * model.n_layers * SEQ_LEN * model.d_model * 2 * (n_model - 1) / n_model
    whole, memory = whole_weights(f), f["seconds"]["memory"] * CHIPS["v6e"].bandwidth
    collectives = {
        Collective("all-gather", ("data",), n_data, round(sent)): 1,
        Collective("all-gather", ("model",), n_model, round(stream)): 1,
    }
    work = Work(
        flops=f["seconds"]["compute"] * CHIPS["v6e"].flops * f["devices"] / n,
        memory_bytes=(memory - whole) * f["devices"] / n + whole / n_model,
        collectives=Counter(collectives),
    )
    return mesh, planner._seconds(work, CHIPS["v6e"], mesh)


def whole_weights(f: dict[str, Any]) -> float:
    """Return the traffic of weights and gradients that are whole on each chip, in bytes, by what a plan sends.

    A ring of n chips sends (n - 1)/n of what it gathers or scatters, and twice that of what it sums. Either is written
    and read once; what is summed without a scatter is written again.
    """
    n = f["mesh"]["data"]
    sent = Counter({c["kind"]: c["gib"] * GIB for c in f["collectives"] if c["axes"] == "data"})
    return n / (n - 1) * (2 * sent["all-gather"] + 2 * sent["reduce-scatter"] + 3 * sent["all-reduce"] / 2)


def grown(f: dict[str, Any]) -> str:
    """Return the table of the same batch on more chips, by arithmetic from the compiled row of 16 chips."""
    chip = CHIPS["v6e"]
    lines = [
        "| chips of v6e | mesh | tokens per chip | compute, s | memory, s | interconnect, s | network, s | bound by "
        "| tokens/s per chip | if nothing overlaps | US dollars per 1B tokens |",
        "|---:|---|---:|---:|---:|---:|---:|---|---:|---:|---:|",
    ]
    for n in CHIPS_OF_V6E:
        mesh, seconds = scaled(f, n)
        seconds = {"network": 0.0} | seconds
        names = ("compute", "memory", "interconnect", "network")
        bound, serial = max(seconds.values()), sum(seconds.values())
        rates = [ROWS * SEQ_LEN / n / s for s in (bound, serial)]
        dollars = " to ".join(f"{1e9 / rate / 3600 * (chip.price or 0):,.0f}" for rate in rates)
        lines.append(
            f"| {n} | {' x '.join(map(str, mesh.shape.values()))} | {ROWS * SEQ_LEN // n:,} | "
            f"{' | '.join(f'{seconds[name]:.3f}' for name in names)} | {max(names, key=lambda name: seconds[name])} | "
            f"{rates[0]:,.0f} | {rates[1]:,.0f} | {dollars} |"
        )
    return "\n".join(lines)


def compared(found: dict[str, dict]) -> str:
    """Return a line that compares the arithmetic with a step that was compiled."""
    _, seconds = scaled(found[TITLE_OF_16], 32)
    compiled = found[COMPILED_FOR_32.title]["seconds"]
    ratios = ", ".join(f"{name} {seconds[name] / compiled[name]:.2f}" for name in compiled)
    return f"The arithmetic over the step that was compiled for 32 chips: {ratios}."


def with_tables(page: str, found: dict[str, dict]) -> str:
    """Return a page with its tables of these plans."""
    before, after = page.split(BEGIN)[0], page.split(END)[1]
    tables = [BEGIN, rented(found), grown(found[TITLE_OF_16]), compared(found), END]
    return before + "\n\n".join(tables) + after


def main(words: list[str]) -> None:
    found = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    for row in (*RENTED, COMPILED_FOR_32):
        if all(word in row.title for word in words) and not row.timed_from:
            try:
                found[row.title] = planned(row)
            except ValueError as e:
                print(f"{row.title}: {e}")
                continue
            print(json.dumps({k: v for k, v in found[row.title].items() if k != "collectives"}), flush=True)
            GOLDEN.write_text(json.dumps(found, indent=1) + "\n")
    PAGE.write_text(with_tables(PAGE.read_text(), found))


if __name__ == "__main__":
    main(sys.argv[1:])
