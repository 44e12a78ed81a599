"""Pool the seeds of forks that `smollm2_forks.py` measured, and compare forks in pairs, with 95% intervals.

    python benchmarks/pool_forks.py --rows runs/forks/rows --json docs/results/smollm2_forks.json

An interval is a bootstrap over rows of the mean over seeds; `by_seed` has the seeds one by one. Pairs have the same
rows, seed and step: a longer list of rows begins with the shorter one, so the first rows of both are compared.
`on_shared_rows` has the estimates of a checkpoint on the rows that every checkpoint was measured on, where it has more;
not those with the text after another gap, which is another text in a longer list. Records of different settings,
checkpoints, precisions or rows are refused; those of earlier versions, which state no settings, are pooled among
themselves.
"""

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from upalm.evals.bootstrap import ratio
from upalm.files import write_atomically

CONTROLS = {name: "causal" for name in ("ul2r", "ul2r_4e-3", "ul2r_gaps")}
"""Control of each fork; see also `find_control`."""
INNERMOST = re.compile(r"\{[^{}\[\]]*(\[[^{}\[\]]*\])?\s*\}|\[[^{}\[\]]*\]")
"""Objects and lists that hold no others, but for one list at the end of an object."""
REFERENCES = {
    **{name: "ul2r" for name in ("ul2r_4e-3", "ul2r_gaps")},
    **{name: "ul2r_512" for name in ("lines_512", "ul2_512")},
    **{name: "long_ul2r" for name in ("long_ul2", "long_lines", "long_gaps")},
}
"""Fork that each candidate is a change of; see also `find_reference`."""

LABELS = {
    "base": "before",
    "short": "`ul2r_infill`",
    "short_causal": "plain language modelling",
    "short_causal_mask": "causal mask",
    "short_no_modes": "no mode tokens",
    "short_no_eos": "no EOS after the inputs",
    "short_no_roll": "masks not rolled",
    "short_paper": "the paper's `ul2r`",
    "short_ul2": "UL2's seven denoisers",
    "short_gaps": "`ul2r_gaps`",
    "short_whole_lines": "lines, no other single gaps",
    "short_random_gaps": "random single gaps",
    "short_5e-4": "peak rate 5e-4",
    "short_1e-3": "peak rate 1e-3",
}
"""What tables and figures call the forks of 100 steps, in their order."""

SHUFFLED = ("infill_gain_shuffled", "suffix_use")
"""Ends of the names of metrics with the text after another gap."""
BY_FORK = ("n_rows", "kinds", "training")
"""Settings in which forks and steps may differ."""
COMPARED = ("infill_bits_per_byte", "infill_gain", "causal_bits_per_byte", "format_ok", "exact_grammar")
"""Ends of the names of metrics that are compared in pairs."""

Record = Mapping[str, Any]
Sums = dict[str, tuple[np.ndarray, np.ndarray]]
"""Numerators and denominators of each metric, by row."""


@dataclass(frozen=True)
class Case:
    """Row by row measures, and the file for the pooled ones."""

    rows: Path
    """Folder that `smollm2_forks.py` wrote."""
    json: Path
    """File for the numbers."""


def find_control(fork: str) -> str | None:
    """Return the causal fork of the same steps and rows."""
    if fork in CONTROLS:
        return CONTROLS[fork]
    control = {"long": "long_causal", "short": "short_causal"}.get(fork.split("_")[0])
    control = "causal_512" if fork.endswith("_512") else control
    return None if fork == control else control


def find_reference(fork: str) -> str | None:
    """Return the fork that another is a change of; "short" for the ablations."""
    return "short" if fork.startswith("short_") else REFERENCES.get(fork)


def the_same(what: str, values: Iterable[Any]) -> Any:
    """Return the one value that all records have of something."""
    found = {json.dumps(value, sort_keys=True): value for value in values}
    if len(found) > 1:
        raise ValueError(f"{what}: there are {' and '.join(sorted(found))}, expected the same: pool them apart.")
    return next(iter(found.values()))


def joined(values: Iterable[str]) -> str:
    """Return the one value of several records, or all of them."""
    return ", ".join(sorted(set(values)))


def shared_settings(records: Sequence[Record]) -> dict[str, Any]:
    """Return the settings that decide what all forks are measured on; records of earlier versions state none.

    Raises:
        ValueError: records of different settings, checkpoints or precisions; or one of which that cannot be told.
    """
    for key, default in (("n_params", None), ("matmul_precision", None), ("compute_dtype", "float32")):
        the_same(key, (record.get(key, default) for record in records))  # older records lack the dtype
    stating = {"settings" in record: record for record in records}
    if len(stating) > 1:
        names = [f"{r['fork']}, seed {r['seed']}, step {r['step']}" for r in (stating[True], stating[False])]
        raise ValueError(
            f"{names[0]} states its settings and {names[1]} does not: pool them apart, or measure it again."
        )
    if not stating.get(True):
        return {}
    keys = dict.fromkeys(key for record in records for key in record["settings"] if key not in BY_FORK)
    return {key: the_same(f"setting {key}", (record["settings"].get(key) for record in records)) for key in keys}


def check_seeds(fork: str, step: int, seeds: Iterable[Record]) -> None:
    """Refuse seeds of a fork that were not trained alike, or have other kinds or numbers of rows."""
    seeds = list(seeds)
    the_same(f"training of {fork}@{step}", (record.get("settings", {}).get("training") for record in seeds))
    counts = [{kind: len(found["n_bytes"]) for kind, found in record["kinds"].items()} for record in seeds]
    texts = [{"causal": len(r["causal"]["bits"]), "decoded": len(r["decoded"]["format_ok"])} for r in seeds]
    the_same(f"rows of {fork}@{step}", (a | b for a, b in zip(counts, texts, strict=True)))


def check_rows(found: Mapping[str, Sums]) -> None:
    """Refuse records whose first rows are not the same gaps and texts."""
    longest: dict[str, tuple[str, np.ndarray]] = {}
    for record, metrics in found.items():
        for name, (_, sizes) in metrics.items():
            other, expected = longest.setdefault(name, (record, sizes))
            n = min(len(sizes), len(expected))
            if not np.array_equal(sizes[:n], expected[:n]):
                raise ValueError(
                    f"{name}: the rows of {record} and {other} differ, expected the same: pool them apart."
                )
            if len(sizes) > n:
                longest[name] = record, sizes


def sums(record: Record) -> Sums:
    """Return what each metric is a ratio of."""
    found: Sums = {}
    for kind, gaps in record["kinds"].items():
        rows = np.array(gaps["shuffled_rows"])
        infill, left, n_bytes = (np.array(gaps[key], float) for key in ("infill", "left_only", "n_bytes"))
        shuffled = np.full(len(infill), np.nan)
        shuffled[rows] = gaps["shuffled"]
        found |= {
            f"{kind}/infill_bits_per_byte": (infill, n_bytes),
            f"{kind}/left_only_bits_per_byte": (left, n_bytes),
            f"{kind}/infill_gain": (left - infill, n_bytes),
            f"{kind}/infill_gain_shuffled": (left - shuffled, n_bytes),
            f"{kind}/suffix_use": (shuffled - infill, n_bytes),
            f"{kind}/between_borders": (np.array(gaps["between_borders"], float), np.ones(len(infill))),
        }
    found["causal_bits_per_byte"] = (np.array(record["causal"]["bits"]), np.array(record["causal"]["n_bytes"], float))
    for name, values in record["decoded"].items():
        if name != "mode":
            found[name] = (np.array(values, float), np.ones(len(values)))
    return found


def estimate(by_seed: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Any]:
    """Estimate a ratio of sums from the rows of every seed; rows without a value in some seed are left out."""
    numerators, denominators = (np.array(x) for x in zip(*by_seed, strict=True))
    rows = np.isfinite(numerators).all(0)
    numerators, denominators = numerators[:, rows], denominators[:, rows]
    pooled = ratio(numerators.mean(0), denominators.mean(0))._asdict()
    values = numerators.sum(1) / denominators.sum(1)
    return {**pooled, "by_seed": values.tolist()}


def shorten(ours: Sums, n_rows: Mapping[str, int]) -> Sums:
    """Keep the first rows of some metrics."""
    return {name: (ours[name][0][:n], ours[name][1][:n]) for name, n in n_rows.items()}


def compare(ours: Sequence[Sums], control: Sequence[Sums]) -> dict[str, Any]:
    """Estimate paired differences, ours minus control; and ours over control from left to right."""
    differences = {}
    for name in (name for name in ours[0] if name.endswith(COMPARED) and all(name in other for other in control)):
        pairs = []
        for a, b in zip(ours, control, strict=True):
            n = min(len(a[name][0]), len(b[name][0]))
            pairs.append((a[name][0][:n] - b[name][0][:n], a[name][1][:n]))
        differences[name] = estimate(pairs)
    bits = [(a["causal_bits_per_byte"][0], b["causal_bits_per_byte"][0]) for a, b in zip(ours, control, strict=True)]
    shortest = min(len(x) for pair in bits for x in pair)
    differences["causal_ratio"] = estimate([(a[:shortest], b[:shortest]) for a, b in bits])
    return differences


def pool(records: Sequence[Record]) -> dict[str, Any]:
    """Pool the seeds of every fork and step, and compare each with the base, its control and its reference."""
    settings = shared_settings(records)
    groups: dict[tuple[str, int], dict[int, Record]] = defaultdict(dict)
    for record in records:
        group = groups[record["fork"], record["step"]]
        if record["seed"] in group:
            raise ValueError(
                f"{record['fork']}, seed {record['seed']}, step {record['step']} is there twice: keep one."
            )
        group[record["seed"]] = record
    for (fork, step), group in groups.items():
        check_seeds(fork, step, group.values())
    by_row = {key: {seed: sums(record) for seed, record in group.items()} for key, group in groups.items()}
    check_rows({f"{key[0]}-s{seed}-{key[1]}": some for key, group in by_row.items() for seed, some in group.items()})
    every = [found for group in by_row.values() for found in group.values()]
    metrics = [name for name in every[0] if not name.endswith(SHUFFLED) and all(name in found for found in every)]
    shared = {name: min(len(found[name][0]) for found in every) for name in metrics}
    labels = {fork: label for fork, label in LABELS.items() if any(fork == name for name, _ in groups)}
    packages = dict.fromkeys(package for record in records for package in record["versions"])
    versions = {p: joined(r["versions"][p] for r in records if p in r["versions"]) for p in packages}
    results: dict[str, Any] = {
        "settings": {"versions": versions} | settings,
        "labels": labels,
        "checkpoints": {},
        "differences": {},
    }
    for (fork, step), group in sorted(groups.items()):
        first, seeds = next(iter(group.values())), sorted(group)
        ours = [by_row[fork, step][seed] for seed in seeds]
        results["checkpoints"][f"{fork}@{step}"] = {
            **{key: first[key] for key in ("fork", "step", "tokens", "n_params")},
            "device": joined(r["device"] for r in group.values()),
            "matmul_precision": first["matmul_precision"],
            "compute_dtype": first.get("compute_dtype", "float32"),
            "seeds": seeds,
            "modes": {kind: [group[s]["kinds"][kind]["mode"] for s in seeds] for kind in first["kinds"]},
            "estimates": {name: estimate([x[name] for x in ours]) for name in ours[0]},
            "fills": first["fills"],
        }
        if any(len(ours[0][name][0]) > n for name, n in shared.items()):
            fewer = [shorten(x, shared) for x in ours]
            results["checkpoints"][f"{fork}@{step}"]["on_shared_rows"] = {
                name: estimate([x[name] for x in fewer]) for name in shared
            }
        others = {"base": ("base", 0), "control": (find_control(fork), step)}
        others["reference"] = (find_reference(fork), step)
        for name, other in others.items():
            theirs = by_row.get(other)  # pyright: ignore[reportArgumentType]
            if theirs is None or other == (fork, step):
                continue
            paired = seeds if name == "base" else [seed for seed in seeds if seed in theirs]
            if paired:
                pairs = [theirs[0] if name == "base" else theirs[seed] for seed in paired]
                found = compare([by_row[fork, step][seed] for seed in paired], pairs)
                results["differences"][f"{fork}@{step} minus {other[0]}@{other[1]}"] = found
    return results


def rounded(value: Any) -> Any:
    """Round to what a reader can use: a file of every digit is three times as long."""
    if isinstance(value, Mapping):
        return {k: rounded(v) for k, v in value.items()}
    if isinstance(value, list):
        return [rounded(v) for v in value]
    return round(value, 4) if isinstance(value, float) else value


def main(args: Case) -> None:
    records = [json.loads(path.read_text("utf-8")) for path in sorted(args.rows.glob("*-s*-*.json"))]
    if not records:
        raise ValueError(f"no measures in {args.rows}: run benchmarks/smollm2_forks.py with --out {args.rows} first.")
    text = json.dumps(rounded(pool(records)), indent=1, allow_nan=False)
    write_atomically(args.json, INNERMOST.sub(lambda m: " ".join(m[0].split()), text) + "\n")  # a line per estimate


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
