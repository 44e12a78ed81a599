"""Write the tables of the pages that have raw numbers in docs/results: `python docs/results_tables.py`.

A table stands between `<!-- NAME -->` and `<!-- end -->`. A test fails when a page and its numbers differ.
"""

import json
import re
from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

HERE = Path(__file__).parent
PALM_TINY = HERE.parent / "upalm" / "assets" / "palm_tiny"
ORDER = (
    "infill_bits_per_byte",
    "left_only_bits_per_byte",
    "infill_gain",
    "infill_gain_shuffled",
    "suffix_use",
    "multi_span_bits_per_byte",
    "causal_bits_per_byte",
    "format_ok",
    "line_exact_match",
)


def format_estimate(estimate: dict[str, float]) -> str:
    return f"{estimate['mean']:.3f} [{estimate['low']:.3f}, {estimate['high']:.3f}]"


def format_rows(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def checkpoints_table(results: dict[str, Any]) -> str:
    """One column per checkpoint, and one row per measure."""
    found = {name: checkpoint["estimates"] for name, checkpoint in results["checkpoints"].items()}
    rows = [[f"`{key}`", *(format_estimate(estimates[key]) for estimates in found.values())] for key in ORDER]
    return format_rows(["held-out Python source", *found], rows)


def differences_table(results: dict[str, Any]) -> str:
    """One row per pair of checkpoints: paired differences on the same rows."""
    pairs = results["differences"]
    keys = list(next(iter(pairs.values())))
    rows = [[pair, *(format_estimate(estimates[key]) for key in keys)] for pair, estimates in pairs.items()]
    return format_rows(["bits per byte", *(f"`{key}`" for key in keys)], rows)


# --- Healing and memory ---------------------------------------------------------------------------


def healing_table(results: dict[str, Any]) -> str:
    """One row per kind of gap: three measures without and with healing, and their paired differences."""
    rows = []
    for kind, found in results.items():
        row = [f"{kind}, {found['start']['plain']['n']}"]
        for estimates in (found[key] for key in ("start", "edit_sim", "closed")):
            row += [f"{estimates['plain']['mean']:.3f}, {estimates['healed']['mean']:.3f}"]
            row += [format_estimate(estimates["difference"])]
        rows.append(row)
    measures = (
        "share of the missing text that the fill begins with",
        "edit similarity",
        "spans that end before the limit",
    )
    header = ["gaps", *(x for measure in measures for x in (f"{measure}: without, with healing", "difference"))]
    return format_rows(header, rows)


def character_cuts_table(results: dict[str, Any]) -> str:
    """One row per kind of gap: measures of the forks whose gaps lie between tokens and, half, between characters."""
    measures = {
        "span_bits_per_byte": "bits per byte",
        "closing_nll": "end of the gap, nats",
        "start, plain": "share begun, no healing",
        "start, healed": "share begun, healing",
    }
    rows = []
    for kind, found in results.items():
        row = [f"{kind}, {found['n']}"]
        for name in measures:
            if name in found:
                row += [f"{found[name]['reference']['mean']:.3f}, {found[name]['ours']['mean']:.3f}"]
                row += [format_estimate(found[name]["difference"])]
            else:
                row += ["", ""]
        rows.append(row)
    header = ["gaps", *(x for measure in measures.values() for x in (f"{measure}: tokens, characters", "difference"))]
    return format_rows(header, rows)


def low_memory_table(records: list[dict[str, Any]]) -> str:
    """One column per contender: validation loss after training."""
    names = {"fp32": "PaLM's, fp32", "bf16": "bf16, stochastic", "nearest": "bf16, nearest"}
    header = ["before", *(names.get(r["contender"], r["contender"]) for r in records)]
    losses = [records[0]["validation"][0], *(r["validation"][1] for r in records)]
    return format_rows(header, [[f"{loss:.3f}" for loss in losses]])


# --- The base -------------------------------------------------------------------------------------


def base_loss_table(records: list[dict[str, Any]]) -> str:
    """One row per validation of the base: those whose steps double, and the last three."""
    run = json.loads((PALM_TINY / "config.json").read_text("utf-8"))["run"]
    tokens_per_step = run["data"]["batch_size"] * run["data"]["seq_len"]
    losses = {r["step"]: r["validation_loss"] for r in records if "validation_loss" in r}
    doubled = {run["eval_every"] * 2**i for i in range(len(losses))}
    steps = [step for step in losses if step in doubled or step in list(losses)[-3:]]
    rows = [[str(step), f"{step * tokens_per_step / 1e6:.0f}", f"{losses[step]:.3f}"] for step in steps]
    return format_rows(["step", "million tokens", "validation loss, nats per token"], rows)


# --- Quickstart -----------------------------------------------------------------------------------


def quickstart_table(results: dict[str, Any]) -> str:
    """One column per model, and one row per measure."""
    found = results["models"]
    rows = [
        [f"`{key}`", *(format_estimate(estimates[key]) for estimates in found.values()), str(first["n"])]
        for key, first in next(iter(found.values())).items()
    ]
    return format_rows(["held-out Python source", *found, "n"], rows)


def quickstart_differences_table(results: dict[str, Any]) -> str:
    """One row per kind of gap."""
    return format_rows(
        ["bits per byte", "ul2r minus causal", "n"],
        [[f"`{key}`", format_estimate(found), str(found["n"])] for key, found in results["differences"].items()],
    )


def curve_table(results: dict[str, Any]) -> str:
    """One row per checkpoint of a UL2R run, the base first."""
    kinds = ("line", "words", "several", "block")
    rows = [
        [
            f"{found['tokens'] / 1e6:.1f}",
            *(format_estimate(found[kind]["gain"]) for kind in kinds),
            f"{found['line']['infill']:.3f}",
            f"{found['causal']:.3f}",
            f"{found['format_ok']:.2f}",
        ]
        for found in results.values()
    ]
    gains = ("a line", "1 to 4 words", "three gaps", "three lines")
    header = ["million tokens", *(f"gain, {kind}" for kind in gains), "a line", "left to right", "`format_ok`"]
    return format_rows(header, rows)


def grid_table(results: list[dict[str, Any]]) -> str:
    """One row per fork of 220 steps; denoisers by their name and share."""
    kinds = {"words": "1 to 4 words", "new_name": "a new word"}
    kinds = {kind: words for kind, words in kinds.items() if all(kind in found["kinds"] for found in results)}
    rows = []
    for found in results:
        mixture = found.get("mixture", "none: the base")
        shares = re.findall(r"name='(\w+)'.*?weight=([\d.]+)", mixture)
        rows.append(
            [
                ", ".join(f"{name} {share}" for name, share in shares) or mixture,
                f"{found['peak']:g}" if "peak" in found else "",
                format_estimate(found["infill_gain"]),
                *(format_estimate(found["kinds"][kind]["gain"]) for kind in kinds),
                *(format_estimate(found[key]) for key in ("infill_bits_per_byte", "causal_bits_per_byte", "format_ok")),
            ]
        )
    gains = [f"gain, {words}" for words in ("a line", *kinds.values())]
    return format_rows(["denoisers and shares", "peak rate", *gains, "a line", "left to right", "`format_ok`"], rows)


def answer_ends_table(results: dict[str, Any]) -> str:
    """One row per model: what the end of an answer costs, and how many answers end."""
    keys = ("rows", "line/closing_nll", "several/closing_nll", "line/format_ok", "several/format_ok")
    header = ["model", "EOS in its own rows, nats", "end of a line's gap, nats", "ends of three gaps, nats"]
    rows = [[name, *(format_estimate(found[key]) for key in keys)] for name, found in results.items()]
    return format_rows([*header, "`format_ok`, a line", "`format_ok`, three gaps"], rows)


# --- Forks of SmolLM2 -----------------------------------------------------------------------------

KINDS = ("line", "short", "several", "several_whole", "prose", "new_name", "new_name_whole")
MEASURES = (
    *(f"{kind}/{name}" for kind in KINDS for name in ORDER[:5]),
    *("causal_bits_per_byte", "format_ok", "exact_grammar", "edit_similarity_grammar", "exact_free"),
    "edit_similarity_free",
)
GAINS = tuple(f"{kind}/infill_gain" for kind in ("line", "short", "several", "prose"))


def final_table(results: dict[str, Any]) -> str:
    """The model before, the control and UL2R, seeds pooled."""
    found = {name: results["checkpoints"][name]["estimates"] for name in ("base@0", "causal@300", "ul2r@300")}
    keys = [key for key in MEASURES if all(key in estimates for estimates in found.values())]
    rows = [[f"`{key}`", *(format_estimate(estimates[key]) for estimates in found.values())] for key in keys]
    return format_rows(["measure", "before", "control", "UL2R"], rows)


def final_differences_table(results: dict[str, Any]) -> str:
    """UL2R minus its control and minus the model before, in pairs, with each seed."""
    pairs = {name: results["differences"][f"ul2r@300 minus {name}"] for name in ("causal@300", "base@0")}
    rows = []
    for key in next(iter(pairs.values())):
        seeds = ", ".join(f"{x:.3f}" for x in pairs["causal@300"][key]["by_seed"])
        rows.append(
            [f"`{key}`", format_estimate(pairs["causal@300"][key]), seeds, format_estimate(pairs["base@0"][key])]
        )
    return format_rows(["UL2R minus", "control", "its seeds", "before"], rows)


def on_shared_rows(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the estimates on the rows that all checkpoints were measured on."""
    return checkpoint.get("on_shared_rows", checkpoint["estimates"])


def steps_table(results: dict[str, Any]) -> str:
    """One row per step of UL2R: its gains on the same rows, and its cost from left to right over the control's."""
    rows = []
    for name, checkpoint in sorted(results["checkpoints"].items(), key=lambda item: item[1]["step"]):
        if checkpoint["fork"] not in ("base", "ul2r"):
            continue
        estimates, step = on_shared_rows(checkpoint), str(checkpoint["step"])
        ratio = results["differences"].get(f"{name} minus causal@{step}", {}).get("causal_ratio")
        cells = [format_estimate(estimates[key]) for key in (*GAINS, "format_ok")]
        rows.append([step, *cells, format_estimate(ratio) if ratio else ""])
    header = ["steps", *(f"`{key}`" for key in (*GAINS, "format_ok"))]
    return format_rows([*header, "left to right, over control"], rows)


def changes_table(
    results: dict[str, Any], references: Sequence[str], gains: Sequence[str] = GAINS, minus: str = "UL2R"
) -> str:
    """One row per changed fork and step: paired differences from the fork that it is a change of."""
    keys = (*gains, "format_ok", "causal_bits_per_byte")
    rows = []
    for pair, found in results["differences"].items():
        name, other = pair.split(" minus ")
        if other.split("@")[0] in references:
            fork, step = name.split("@")
            n_seeds = len(found[keys[0]]["by_seed"])
            rows.append([label(results, fork), step, str(n_seeds), *(format_estimate(found[key]) for key in keys)])
    rows.sort(key=lambda row: order(results, row[0]))
    return format_rows([f"minus {minus}", "steps", "seeds", *(f"`{key}`" for key in keys)], rows) if rows else ""


def label(results: dict[str, Any], fork: str) -> str:
    """Words for a fork, or its name."""
    return results.get("labels", {}).get(fork, f"`{fork}`")


def order(results: dict[str, Any], name: str) -> int:
    """Place of a label among the rows; names without one keep theirs, after these."""
    labels = list(results.get("labels", {}).values())
    return labels.index(name) if name in labels else len(labels)


def candidates_table(results: dict[str, Any]) -> str:
    """Changes of UL2R's settings."""
    return changes_table(results, ("ul2r", "ul2r_512", "long_ul2r"))


ABLATION_KEYS = ("line/infill_bits_per_byte", "line/infill_gain", "several_whole/infill_gain")


def ablations_table(results: dict[str, Any]) -> str:
    """Changes of 100 steps of UL2R: paired differences."""
    return changes_table(results, ("short",), ABLATION_KEYS, label(results, "short"))


def ablated_table(results: dict[str, Any]) -> str:
    """One row per fork of 100 steps, and the model before: values."""
    keys = (*ABLATION_KEYS, "format_ok", "causal_bits_per_byte")
    rows = []
    for checkpoint in results["checkpoints"].values():
        cells = [format_estimate(checkpoint["estimates"][key]) for key in keys]
        rows.append([label(results, checkpoint["fork"]), *cells])
    rows.sort(key=lambda row: order(results, row[0]))
    return format_rows(["fork", *(f"`{key}`" for key in keys)], rows)


def cuts_table(results: dict[str, Any]) -> str:
    """One row per kind of gap: rows whose spans all lie between borders of tokens, costs and gains for one model."""
    estimates = results["checkpoints"]["base@0"]["estimates"]
    rows = []
    for kind in (kind for kind in KINDS if f"{kind}/between_borders" in estimates):
        share = estimates[f"{kind}/between_borders"]
        cells = [format_estimate(estimates[f"{kind}/{name}"]) for name in ORDER[:4]]
        rows.append([f"`{kind}`", f"{share['mean'] * share['n']:.0f} of {share['n']}", *cells])
    return format_rows(["gaps", "rows between borders", *(f"`{name}`" for name in ORDER[:4])], rows)


# --- Scaling --------------------------------------------------------------------------------------


def savings_table(results: dict[str, Any]) -> str:
    """One row per start: cost of gaps of both continuations, savings rate, and paired differences over seeds."""
    gaps, causal = "minus infill_bits_per_byte", "minus continue_causal_bits_per_byte"
    found = {(x["start_flops"], x["family"]): x for x in results["savings"][gaps]}
    pairs = {m: {x["start_flops"]: x for x in results["differences"][m]} for m in (gaps, causal, "score")}
    rows = []
    for start in sorted(flops for flops in pairs[gaps] if flops is not None):
        control, ul2r = found[start, "control"], found[start, "ul2r"]
        rate, ends = ul2r["rate"], [ul2r["low"], ul2r["high"]]
        low, high = (f"over {ul2r['bound']:.2f}" if x is None else f"{x:.2f}" for x in ends)
        signs = ((gaps, -1), (causal, -1), ("score", 1))
        rows.append(
            [
                f"{start / 6 / ul2r['n_params'] / 1e6:.1f}",
                *(f"{-x['score']:.3f}" for x in (control, ul2r)),
                f"over {ul2r['bound']:.2f}x" if rate is None else f"{rate:.2f}x [{low}, {high}]",
                *(f"{sign * pairs[m][start]['mean']:+.3f} ± {pairs[m][start]['se']:.3f}" for m, sign in signs),
            ]
        )
    header = ["million tokens before", "gaps: control", "UL2R", "savings rate of UL2R [95%]"]
    return format_rows([*header, *(f"UL2R minus control: {x}" for x in ("gaps", "left to right", "suite"))], rows)


# --- Suites ---------------------------------------------------------------------------------------


def suite_table(results: dict[str, Any]) -> str:
    """One row per task, one column per checkpoint and prompt format."""
    columns = [(name, how) for name, formats in results.items() for how in formats]
    tasks = list(next(iter(next(iter(results.values())).values())))
    rows = []
    for task in tasks:
        scores = [results[name][how][task] for name, how in columns]
        shots = {score.get("n_shots", 0) for score in scores}
        first = [next(iter(score["metrics"].values())) for score in scores]
        rows.append(
            [
                f"{task}, {max(shots)}-shot",
                str(first[0]["n"]),
                *(f"{100 * x['mean']:.1f} ± {196 * x['se']:.1f}" for x in first),
            ]
        )
    means = [np.mean([next(iter(x["metrics"].values()))["mean"] for x in results[a][b].values()]) for a, b in columns]
    rows.append(["mean over tasks", "", *(f"{100 * mean:.1f}" for mean in means)])
    return format_rows(["task", "questions", *(f"{name}: {how}" for name, how in columns)], rows)


def suite_pairs_table(results: dict[str, Any]) -> str:
    """One row per pair on the same questions: the last checkpoint under each format, minus each other one, causal.

    The mean counts tasks equally; its interval is 1.96 standard errors over the questions.
    """
    *others, ours = results
    rows = []
    for how, tasks in results[ours].items():
        for other in others:
            differences = [
                np.subtract(found["by_question"], results[other]["causal, none"][task]["by_question"])
                for task, found in tasks.items()
            ]
            means = np.array([x.mean() for x in differences])
            errors = np.array([x.std() / np.sqrt(len(x)) for x in differences])
            error = np.sqrt((errors**2).sum()) / len(means)
            clear = [int((sign * means > 1.96 * errors).sum()) for sign in (1, -1)]
            rows.append(
                [
                    f"{ours} ({how}) minus {other} (causal, none)",
                    f"{100 * means.mean():+.1f} ± {196 * error:.1f}",
                    f"{clear[0]}, {clear[1]} of {len(means)}",
                ]
            )
    return format_rows(["the same questions", "mean over tasks, points", "tasks clearly better, clearly worse"], rows)


def humaneval_table(results: dict[str, Any]) -> str:
    """One row per kind of gap, checkpoint and mode token."""
    keys = ("format_ok", "em_line", "em", "edit_sim", "span_bits_per_byte", "closing_nll")
    rows = []
    for name, formats in results.items():
        for how, tasks in formats.items():
            for task, found in tasks.items():
                metrics = found["metrics"]
                cells = [format_estimate(metrics[key]) if key in metrics else "" for key in keys]
                rows.append([task, name, how, str(metrics["format_ok"]["n"]), *cells])
    return format_rows(["gaps", "checkpoint", "format", "rows", *(f"`{key}`" for key in keys)], sorted(rows))


# --- GPUs -----------------------------------------------------------------------------------------


PATHS = {"pallas": "our kernels", "cuDNN": "cuDNN", "plain": "plain"}
"""Words for the paths of attention."""


def format_share(x: float | None) -> str:
    """Write a share in per cent; nothing for one that is not known, as on a device without a data sheet."""
    return "" if x is None else f"{x:.1%}"


def like_cases(record: dict[str, Any]) -> tuple[Any, ...]:
    """Return what two measures of training must share to be compared, as in `gpu_speed.py`."""
    return tuple(record[key] for key in ("shape", "rows", "seq", "device"))


def training_table(records: list[dict[str, Any]]) -> str:
    """One row per shape and contender: time, throughput and memory of a training step."""
    records = [r for r in records if r["part"] == "train" and "error" not in r]
    peers = {like_cases(r): r["tokens_per_s"] for r in records if r["contender"] == "peer"}
    rows = []
    for r in sorted(records, key=lambda r: [x["shape"] for x in records].index(r["shape"])):
        ms = [1000 * seconds for seconds in r["seconds"]]
        peer, memory = peers.get(like_cases(r)), [r.get(key) for key in ("peak", "planned")]
        remat = "" if r.get("remat", "matmuls") == "matmuls" else f", remat {r['remat']}"
        rows.append(
            [
                f"{r['shape']}, {r['rows']} x {r['seq']}",
                f"upalm, {PATHS[r['path']]}{remat}" if "path" in r else "transformers",
                f"{median(ms):.1f} ({min(ms):.1f} to {max(ms):.1f})",
                f"{r['tokens_per_s']:,.0f}",
                format_share(r["mfu"]),
                f"{r['tokens_per_s'] / peer:.2f}" if peer else "",
                *("" if x is None else f"{x / 2**30:.1f}" for x in memory),
            ]
        )
    header = ["shape, rows x tokens", "attention", "ms per step (range)", "tokens/s", "MFU", "ratio to transformers"]
    return format_rows([*header, "peak GiB", "planned GiB"], rows)


def generation_table(records: list[dict[str, Any]]) -> str:
    """One row per shape and batch: speed of greedy decoding, and its share of the memory's bandwidth."""
    rows = []
    for r in (r for r in records if r["part"] == "generate" and "error" not in r):
        low, ms, high = (1000 * seconds for seconds in r["step_s"])
        rows.append(
            [
                r["shape"],
                str(r["rows"]),
                f"{r['tokens_per_s']:,.0f}",
                f"{ms:.2f} ({low:.2f} to {high:.2f})",
                format_share(r["of_data_sheet"]),
                format_share(r["of_copy"]),
            ]
        )
    header = ["shape", "rows", "tokens/s", "ms per step (range)", "of the data sheet's bandwidth", "of a copy's"]
    return format_rows(header, rows)


def attention_table(records: list[dict[str, Any]]) -> str:
    """One row per shape of heads and path: worst errors over all kinds of rows."""
    rows = []
    records = [r for r in records if "error" not in r]
    for r in sorted(records, key=lambda r: [x["heads"] for x in records].index(r["heads"])):
        by_array = zip(*(x for x in r.values() if isinstance(x, list)), strict=True)
        rows.append([r["heads"], PATHS[r["path"]], *(f"{max(errors):.4f}" for errors in by_array)])
    return format_rows(["heads", "attention", "output", "dq", "dk", "dv"], rows)


def kernels_table(records: list[dict[str, Any]]) -> str:
    """One row per shape and kind of rows: time of attention and its gradient by each path."""
    rows, records = [], [r for r in records if "error" not in r]
    for shape, kind in dict.fromkeys((r["shape"], r["rows"]) for r in records):
        some = [r for r in records if (r["shape"], r["rows"]) == (shape, kind)]
        both = {r["path"]: r["ms"] for r in some if r["part"] == "both"}
        ours = [[r["ms"] for r in some if r["part"] == part and r["blocks"]] for part in KERNELS]
        best = sum(map(min, ours)) if all(ours) else None
        b, t, n, k, h = some[0]["size"]
        columns = (both["pallas"], best, both["cuDNN"], both.get("cuDNN, no mask"), both["plain"])
        rows.append(
            [
                f"{shape}: {b} x {t}, {n} heads of {h}, {k} of keys",
                kind,
                *("" if ms is None else f"{ms:.2f}" for ms in columns),
                f"{both['cuDNN'] / both['pallas']:.2f}",
            ]
        )
    header = ["shape", "rows", "our kernels", "by the fastest blocks", "cuDNN", "cuDNN without a mask", "plain"]
    return format_rows([*header, "cuDNN over ours"], rows)


KERNELS = ("forward", "d_queries", "d_keys")
"""Kernels of attention and its gradient."""


TABLES = {
    "results.md": {
        "base loss": ("../../upalm/assets/palm_tiny/metrics.jsonl", base_loss_table),
        "quickstart": ("quickstart.json", quickstart_table),
        "quickstart differences": ("quickstart.json", quickstart_differences_table),
        "ul2r_tiny curve": ("ul2r_tiny_curve.json", curve_table),
        "ul2r_tiny curve with random gaps": ("ul2r_tiny_curve_random_gaps.json", curve_table),
        "ul2r_tiny curve with lines alone": ("ul2r_tiny_curve_lines.json", curve_table),
        "fork grid": ("fork_grid.json", grid_table),
        "fork grid of lines": ("fork_grid_lines.json", grid_table),
        "answer ends": ("answer_ends.json", answer_ends_table),
        "smollm2 checkpoints": ("smollm2.json", checkpoints_table),
        "smollm2 seed 2": ("smollm2_seed_2*.json", checkpoints_table),
        "smollm2 differences": ("smollm2.json", differences_table),
        "smollm2 forks": ("smollm2_forks.json", final_table),
        "smollm2 forks in pairs": ("smollm2_forks.json", final_differences_table),
        "smollm2 steps": ("smollm2_forks.json", steps_table),
        "smollm2 candidates": ("smollm2_forks.json", candidates_table),
        "smollm2 ablated": ("smollm2_ablations.json", ablated_table),
        "smollm2 ablations": ("smollm2_ablations.json", ablations_table),
        "scaling open": ("scaling_open.json", savings_table),
        "upalm_tiny cuts": ("upalm_tiny_cuts.json", cuts_table),
        "smollm2 english": ("smollm2_english*.json", suite_table),
        "smollm2 english in pairs": ("smollm2_english*.json", suite_pairs_table),
        "smollm2 humaneval": ("smollm2_humaneval*.json", humaneval_table),
    },
    "infilling.md": {
        "healing": ("healing.json", healing_table),
        "character cuts": ("character_cuts.json", character_cuts_table),
    },
    "training.md": {"low memory": ("low_memory.jsonl", low_memory_table)},
    "performance.md": {
        "gpu training": ("gpu_speed.jsonl", training_table),
        "gpu training before": ("gpu_speed_before.jsonl", training_table),
        "gpu generation": ("gpu_speed.jsonl", generation_table),
        "gpu kernels": ("gpu_kernels.jsonl", kernels_table),
        "gpu attention": ("gpu_attention.jsonl", attention_table),
    },
}
"""Tables by page, each with its file of numbers, or files that are merged, and what makes it."""


def read_numbers(file: Path) -> Any:
    """Read JSON, or the records of JSON Lines."""
    text = file.read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else json.loads(text)


def merged(a: Any, b: Any) -> Any:
    """Merge nested dicts."""
    if not isinstance(a, dict):
        return b
    return a | {key: merged(a[key], value) if key in a else value for key, value in b.items()}


def with_tables(name: str) -> str:
    """Return a page of docs with every table replaced by that of its numbers."""
    page = (HERE / name).read_text("utf-8")
    for marker, (pattern, make) in TABLES[name].items():
        files = sorted((HERE / "results").glob(pattern))
        if not files:
            continue  # not measured yet
        table = make(reduce(merged, map(read_numbers, files)))
        if not table:
            continue  # nothing of it was measured
        place = rf"(<!-- {marker} -->\n).*?(<!-- end -->)"
        page, n_found = re.subn(place, lambda m, t=table: f"{m[1]}\n{t}\n\n{m[2]}", page, flags=re.DOTALL)
        if n_found != 1:
            raise ValueError(f"{name} has {n_found} places for the table {marker!r}, expected 1.")
    return page


if __name__ == "__main__":
    for name in TABLES:
        (HERE / name).write_text(with_tables(name), "utf-8")
