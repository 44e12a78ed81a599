"""From the rows of measured forks to pooled numbers, tables and figures."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import jax
import numpy as np
import pytest
import tyro
from support.runs import MODEL

import upalm
from upalm.checkpoints.folder import describe
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data.readers import Document
from upalm.data.tokenizer import SentencePiece
from upalm.evals.bootstrap import Estimate
from upalm.evals.infilling.gaps import Gap
from upalm.model import attention

ROOT = Path(__file__).parent.parent
KINDS = ("line", "short", "several", "several_whole", "prose")
DTYPES = ("float32", "bfloat16")
STEPS = {
    "base": (0,),
    "ul2r": (50, 300),
    "ul2r_4e-3": (50,),
    "causal": (50, 300),
    "short": (100,),
    "short_causal": (100,),
    "short_ul2": (100,),
}


@pytest.fixture(scope="module")
def pool():
    return runpy.run_path(str(ROOT / "benchmarks" / "pool_forks.py"))["pool"]


def record(fork, seed, step, n_rows):
    """Measures of a fork whose gaps get cheaper with training, on rows that differ in difficulty."""
    difficulty = np.random.default_rng(0).uniform(1, 3, 32)[:n_rows]
    saved = 0.0 if "causal" in fork or fork == "base" else step / 300 + seed / 10
    n_bytes = np.arange(10, 10 + n_rows)
    gaps = {
        "mode": "nlu",
        "left_only_format": "none, causal",
        "between_borders": [1, 0] * (n_rows // 2),
        "n_bytes": n_bytes.tolist(),
        "infill": ((difficulty + 0.5 - saved) * n_bytes).tolist(),
        "left_only": (difficulty * n_bytes).tolist(),
        "shuffled_rows": list(range(n_rows - 1)),
        "shuffled": ((difficulty + 1) * n_bytes).tolist()[:-1],
    }
    return {
        "fork": fork,
        "seed": seed,
        "step": step,
        "tokens": step * 2048,
        "n_params": 1,
        "device": "cpu",
        "matmul_precision": "default",
        "versions": {},
        "kinds": {kind: gaps for kind in KINDS},
        "causal": {"bits": [3.0] * n_rows, "n_bytes": [2] * n_rows},
        "decoded": {"mode": "nlu", "format_ok": [1, 0] * (n_rows // 2)}
        | {f"{name}_{how}": [0] * n_rows for name in ("exact", "edit_similarity") for how in ("grammar", "free")},
        "fills": [],
    }


@pytest.fixture(scope="module")
def results(pool):
    seeds = {fork: (0,) if fork == "base" else (0, 1) for fork in STEPS}
    return pool([record(f, s, k, 16 if k == 50 else 32) for f in STEPS for s in seeds[f] for k in STEPS[f]])


def test_seeds_are_pooled_over_the_same_rows(results):
    gain = results["checkpoints"]["ul2r@300"]["estimates"]["line/infill_gain"]
    assert gain["by_seed"] == pytest.approx([0.5, 0.6])
    assert gain["mean"] == pytest.approx(0.55) and gain["n"] == 32
    assert gain["low"] == pytest.approx(gain["high"])  # the rows differ in cost, not in gain


def test_steps_are_compared_on_the_rows_that_all_have(results):
    last, earlier = (results["checkpoints"][f"ul2r@{step}"] for step in (300, 50))
    assert "on_shared_rows" not in earlier and earlier["estimates"]["line/infill_gain"]["n"] == 16
    cost = {name: last[name]["line/left_only_bits_per_byte"] for name in ("estimates", "on_shared_rows")}
    assert (cost["estimates"]["n"], cost["on_shared_rows"]["n"]) == (32, 16)
    assert cost["on_shared_rows"]["mean"] == earlier["estimates"]["line/left_only_bits_per_byte"]["mean"]


def test_what_was_not_measured_has_no_table_and_no_figure(results):
    fewer = {**results, "differences": {k: v for k, v in results["differences"].items() if "short" not in k}}
    assert runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["ablations_table"](fewer) == ""
    assert runpy.run_path(str(ROOT / "docs" / "results_figures.py"))["smollm2_ablations"](fewer) == ""


def test_forks_are_compared_with_their_control_in_pairs(results):
    difference = results["differences"]["ul2r@300 minus causal@300"]
    assert difference["line/infill_bits_per_byte"]["mean"] == pytest.approx(-1.05)
    assert difference["line/infill_bits_per_byte"]["low"] == pytest.approx(-1.05)
    assert difference["causal_ratio"]["mean"] == 1
    assert "short_ul2@100 minus short@100" in results["differences"]
    assert results["differences"]["ul2r@50 minus base@0"]["format_ok"]["n"] == 16


def test_spans_are_widened_to_whole_tokens_and_characters():
    widen = runpy.run_path(str(ROOT / "benchmarks" / "smollm2_forks.py"))["widen_to_tokens"]
    tokenizer = SimpleNamespace(token_bytes=[b"x", b" y", b"\xc3", b"\xb6a", b"b"], encode=lambda text: range(5))
    row = Gap(("x ", "ö", "b"), ("y", "a"))
    assert widen(tokenizer, row) == Gap(("x", "", "b"), (" y", "öa"))
    assert widen(tokenizer, widen(tokenizer, row)) == widen(tokenizer, row)


def test_checkpoints_are_compared_on_rows_that_fit_the_shortest(tmp_path, tokenizer, source_text):
    (tmp_path / "my.txt").write_text(source_text)
    for name, seq_len in (("long", 1024), ("short", 512)):
        describe(tmp_path / name, replace(MODEL, seq_len=seq_len), tokenizer, {"imported": "a"}, CheckpointInfo())
    describe(tmp_path / "other", MODEL, SentencePiece.train([source_text[:50_000]], 512), {}, CheckpointInfo())
    folders = {name: tmp_path / name for name in ("long", "short")}
    compare = runpy.run_path(str(ROOT / "benchmarks" / "compare_checkpoints.py"))
    args = SimpleNamespace(data=str(tmp_path / "my.txt"), seq_len=2048, n_rows=2)
    rows = compare["cut_rows"](args, folders)
    assert rows.seq_len == 512 and len(rows.lines) == len(rows.words) == 2
    assert compare["cut_rows"](args, dict(list(folders.items())[:1])).seq_len == 1024
    with pytest.raises(ValueError, match=r"different tokenizers \(long \w+, other \w+\): give those of one"):
        compare["cut_rows"](args, {"long": tmp_path / "long", "other": tmp_path / "other"})


def test_rows_between_borders_are_counted(results):
    share = results["checkpoints"]["base@0"]["estimates"]["several/between_borders"]
    assert share["mean"] == 0.5 and share["n"] == 32
    table = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["cuts_table"](results)
    assert (
        "| `several_whole` | 16 of 32 |" in table and "| -0.500 [-0.500, -0.500] | -1.000 [-1.000, -1.000] |" in table
    )


def test_rows_of_different_gaps_are_not_compared(pool):
    other = record("causal", 0, 300, 32)
    other["kinds"]["line"] = other["kinds"]["line"] | {"n_bytes": [1] * 32}
    with pytest.raises(ValueError, match="line/.*: the rows of causal-s0-300 and ul2r-s0-300 differ"):
        pool([record("ul2r", 0, 300, 32), other])
    with pytest.raises(ValueError, match="the rows of ul2r-s1-300 and ul2r-s0-300 differ"):
        pool([record("ul2r", 0, 300, 32), other | {"fork": "ul2r", "seed": 1}])


SETTINGS = {"checkpoint": "a", "seq_len": 512, "n_rows": 32, "kinds": list(KINDS), "training": {"n_steps": 300}}


def settled(fork, seed=0, step=300, n_rows=32, **settings):
    return record(fork, seed, step, n_rows) | {"settings": SETTINGS | settings}


def test_records_of_different_settings_are_not_pooled(pool):
    mixed = {
        'setting checkpoint: there are "a" and "b"': settled("causal", checkpoint="b"),
        "setting seq_len: there are 256 and 512": settled("causal", seq_len=256),
        "n_params: there are 1 and 2": settled("causal") | {"n_params": 2},
        'compute_dtype: there are "bfloat16" and "float32"': settled("causal") | {"compute_dtype": "bfloat16"},
        "matmul_precision": settled("causal") | {"matmul_precision": "highest"},
        "training of ul2r@300": settled("ul2r", 1, training={"n_steps": 400}),
        "rows of ul2r@300": settled("ul2r", 1, n_rows=16),
        "ul2r, seed 0, step 300 is there twice": settled("ul2r"),
        "ul2r, seed 0, step 300 states its settings and causal, seed 0, step 300 does not": record(
            "causal", 0, 300, 32
        ),
    }
    for message, other in mixed.items():
        with pytest.raises(ValueError, match=message):
            pool([settled("ul2r"), other])


def test_pooled_records_state_what_they_share(pool):
    other = settled("causal", 1, 50, 16, training={}, kinds=["line"]) | {"versions": {"jax": "2"}, "device": "gpu"}
    found = pool([settled("causal", 0, 50, 16, training={}) | {"versions": {"jax": "1"}}, other, settled("ul2r")])
    assert found["settings"] == {"versions": {"jax": "1, 2"}, "checkpoint": "a", "seq_len": 512}
    assert found["checkpoints"]["causal@50"]["device"] == "cpu, gpu"


@pytest.fixture
def forks(monkeypatch, tmp_path):
    """The script, whose rows, training and measures are stand-ins; it counts what it trains."""
    script = runpy.run_path(str(ROOT / "benchmarks" / "smollm2_forks.py"))
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "manifest.json").write_text("{}")
    (tmp_path / "prose.txt").write_text("prose")
    trained, measured = [], []

    def measure(args, folder, rows, mask):
        measured.append(folder.name)
        kinds = {kind: {"infill": [1.0], "left_only": [2.0], "n_bytes": [1]} for kind in args.kinds}
        return {"n_params": 1, "kinds": kinds, "decoded": {"format_ok": [1]}}

    def run_once(config):
        trained.append(config.out.name)
        for step in (config.n_steps // 2, config.n_steps):
            (config.out / "steps" / str(step)).mkdir(parents=True, exist_ok=True)
        (config.out / "metrics.jsonl").write_text("")

    stand_ins = {
        "enable_compilation_cache": lambda: None,
        "held_out_documents": lambda folder, _: [Document("0", (folder / "manifest.json").read_text())],
        "cut_rows": lambda args, *_: args.kinds,
        "measure": measure,
        "run_once": run_once,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setitem(script["main"].__globals__, name, stand_in)
    settings = {"checkpoint": upalm.PALM_TINY, "data": tmp_path / "data", "prose": tmp_path / "prose.txt"}
    settings |= {
        "out": tmp_path / "rows",
        "work": tmp_path / "work",
        "forks": ("base", "short"),
        "kinds": ("line", "short"),
    }
    return SimpleNamespace(
        trained=trained,
        measured=measured,
        folder=tmp_path,
        globals=script["main"].__globals__,
        measure=lambda **changes: script["main"](script["Case"](**settings | changes)),
        records=lambda: {path.name: json.loads(path.read_text()) for path in (tmp_path / "rows").glob("*.json")},
    )


def test_measured_forks_are_not_trained_again(forks):
    forks.measure()
    assert forks.trained == ["short-s0"] and forks.records().keys() == {"base-s0-0.json", "short-s0-100.json"}
    forks.measure()
    forks.measure(kinds=("line",))  # they have more
    assert forks.trained == ["short-s0"]
    settings = forks.records()["short-s0-100.json"]["settings"]
    assert settings["training"]["batch"] == "4 x 256" and settings["n_rows"] == 256


def test_checkpoints_that_are_measured_are_left_when_others_lack(forks):
    forks.measure(forks=("ul2r",), shrink=3)
    (path,) = forks.folder.glob("rows/ul2r-s0-66.json")
    path.unlink()
    forks.measure(forks=("ul2r",), shrink=3)
    assert forks.trained == ["ul2r-s0"] * 2 and len(forks.records()) == 4
    assert forks.measured == ["16", "33", "66", "100", "66"]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"n_rows": 8}, "n_rows 256, now 8"),
        ({"n_decoded": 8}, "n_decoded 64, now 8"),
        ({"seq_len": 64}, "seq_len 512, now 64"),
        ({"checkpoint": upalm.UPALM_TINY}, "checkpoint .*, now "),
        ({"kinds": ("line", "short", "prose")}, r"kinds \['line', 'short'\], now \['line', 'short', 'prose'\]"),
        ({"shrink": 4, "forks": ("base",)}, "shrink 1, now 4"),
    ],
    ids=lambda x: next(iter(x)) if isinstance(x, dict) else "",
)
def test_forks_measured_otherwise_are_refused(changes, message, forks):
    forks.measure()
    before = forks.records()
    with pytest.raises(ValueError, match=rf"-s0-\d+.json is of other settings \(.*{message}.*choose another --out"):
        forks.measure(**changes)
    assert forks.trained == ["short-s0"] and forks.records() == before


def test_forks_of_another_text_version_or_run_are_refused(forks, monkeypatch):
    forks.measure()
    (forks.folder / "data" / "manifest.json").write_text('{"other": 1}')
    with pytest.raises(ValueError, match="data .*, now .*held_out .*, now "):
        forks.measure()
    (forks.folder / "data" / "manifest.json").write_text("{}")
    (forks.folder / "prose.txt").write_text("other prose")
    with pytest.raises(ValueError, match="prose .*, now "):
        forks.measure()
    (forks.folder / "prose.txt").write_text("prose")
    monkeypatch.setitem(forks.globals["FORKS"], "short", forks.globals["FORKS"]["short_gaps"])
    with pytest.raises(ValueError, match="short-s0-100.json is of other settings .training's mixture Span.*, now Span"):
        forks.measure()
    assert forks.trained == ["short-s0"]


def test_forks_of_another_version_are_refused(forks, monkeypatch):
    forks.measure()
    monkeypatch.setitem(forks.globals, "versions", lambda: {"jax": "9"})
    with pytest.raises(ValueError, match="version of jax .*, now 9"):
        forks.measure()


def test_files_without_settings_are_refused_for_more_training(forks):
    forks.measure()
    path = forks.folder / "rows" / "short-s0-100.json"
    path.write_text(json.dumps({k: v for k, v in json.loads(path.read_text()).items() if k != "settings"}))
    before = forks.records()
    with pytest.raises(ValueError, match="short-s0-100.json does not say with which settings it was measured"):
        forks.measure(forks=("short_gaps", "short"))
    assert forks.trained == ["short-s0"] and forks.records() == before


def test_seeds_of_two_precisions_are_not_pooled(pool):
    records = [record("ul2r", seed, 300, 32) | {"compute_dtype": dtype} for seed, dtype in enumerate(DTYPES)]
    with pytest.raises(ValueError, match='compute_dtype: there are "bfloat16" and "float32"'):
        pool(records)


@pytest.mark.parametrize("name", ["training_table", "generation_table", "kernels_table", "attention_table"])
def test_tables_leave_out_what_failed_on_a_gpu(name):
    make = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))[name]
    failed = {"part": "train", "shape": "1b", "heads": "any", "error": "out of memory"}
    assert make([failed, failed | {"part": "generate"}]).count("\n") == 1  # the header alone


def training_record(contender, rows, **fields):
    size = {"shape": "1b", "rows": rows, "seq": 2048, "device": "H200"}
    speed = {"seconds": [0.1], "tokens_per_s": 20480.0 * rows, "mfu": 0.5, "peak": 2**30}
    return {"part": "train", "contender": contender} | size | speed | fields


def test_a_path_without_a_peak_of_its_own_has_a_row():
    make = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["training_table"]
    row = make([training_record("upalm", 8, path="pallas", peak=None, planned=2**31, mfu=None)]).splitlines()[-1]
    assert row == "| 1b, 8 x 2048 | upalm, our kernels | 100.0 (100.0 to 100.0) | 163,840 |  |  |  | 2.0 |"


def test_speed_is_compared_among_like_cases(monkeypatch, capsys):
    """In the page and in the script's own table: with the rows, the tokens and the device."""
    records = [training_record("peer", 8)]
    records += [
        training_record("upalm", n, path="plain", device=d) for n, d in ((8, "H200"), (16, "H200"), (8, "H100"))
    ]
    make = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["training_table"]
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    runpy.run_path(str(ROOT / "benchmarks" / "gpu_speed.py"))["print_tables"](records)
    assert [row.split(" | ")[5] for row in make(records).splitlines()[2:]] == ["1.00", "1.00", "", ""]
    assert [line.count("1.00") for line in capsys.readouterr().out.splitlines() if " x 2048" in line] == [1, 1, 0, 0]


def test_every_path_on_a_gpu_trains_from_the_same_state(monkeypatch, tmp_path):
    """Here on a CPU, where both paths are the plain one and so have the same loss."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "gpu_speed.py"))
    monkeypatch.setitem(script["train_upalm"].__globals__, "wait_for_turn", lambda: None)
    monkeypatch.setattr(jax, "clear_caches", lambda: None)
    monkeypatch.setattr(attention, "GPU_KERNELS", attention.GPU_KERNELS)
    sizes = {"batch": 2, "seq": 32, "rounds": 1, "steps": 1}
    case = script["Case"](
        shapes=("smoke",), paths=("pallas", "plain"), out=tmp_path / "out.jsonl", worker="train:smoke:upalm", **sizes
    )
    script["train_upalm"](case, "smoke")
    records = [json.loads(line) for line in case.out.read_text().splitlines()]
    assert [r["path"] for r in records] == ["pallas", "plain"] and records[0]["loss"] == records[1]["loss"]


def test_losses_of_the_base_are_those_of_its_log():
    make = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["base_loss_table"]
    log = [{"step": step, "loss": 1.0} | {"validation_loss": 9.0 - step / 1000} for step in range(180, 1441, 180)]
    rows = [row.split(" | ") for row in make([{"step": 28, "loss": 6.6}, *log]).splitlines()[2:]]
    assert [row[0] for row in rows] == ["| 180", "| 360", "| 720", "| 1080", "| 1260", "| 1440"]
    assert rows[0][1:] == ["12", "8.820 |"]


def test_tables_of_forks_have_a_row_for_each(results):
    tables = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))
    final = tables["final_table"](results)
    assert "| `line/infill_gain` | -0.500 [-0.500, -0.500] | -0.500 [-0.500, -0.500] | 0.550 [0.550, 0.550] |" in final
    assert [line.split(" | ")[0] for line in tables["steps_table"](results).splitlines()[2:]] == [
        "| 0",
        "| 50",
        "| 300",
    ]
    assert "| `ul2r_4e-3` | 50 | 2 | 0.000 [0.000, 0.000]" in tables["candidates_table"](results)
    ablations = tables["ablations_table"](results)
    assert ablations.count("| 100 | 2 |") == 2 and "| UL2's seven denoisers |" in ablations
    assert ablations.startswith("| minus `ul2r_infill` |")
    assert "-1.000, -1.100" in tables["final_differences_table"](results)


def test_tables_of_suites_merge_their_files():
    tables = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))
    score = {"metrics": {"acc": {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 200, "se": 0.05}}, "n_shots": 1}
    files = [{"base": {"prefix, none": {task: score}, "causal, none": {task: score}}} for task in ("copa", "piqa")]
    table = tables["suite_table"](tables["merged"](*files))
    assert table.count("1-shot | 200 | 50.0 ± 9.8 | 50.0 ± 9.8 |") == 2
    assert table.endswith("| mean over tasks |  | 50.0 | 50.0 |")


def test_questions_of_suites_add_up_to_their_tasks():
    for path in (ROOT / "docs" / "results").glob("smollm2_english_*.json"):
        ((_, formats),) = json.loads(path.read_text("utf-8")).items()
        for task, found in ((task, found) for tasks in formats.values() for task, found in tasks.items()):
            headline = next(iter(found["metrics"].values()))
            assert len(found["by_question"]) == headline["n"] == 40, task
            np.testing.assert_allclose(np.mean(found["by_question"]), headline["mean"], err_msg=task)


def test_pairs_of_suites_are_of_the_same_questions():
    """Answers that differ in half of the questions: 50 points, with the error of a difference and not of two means."""
    make = runpy.run_path(str(ROOT / "docs" / "results_tables.py"))["suite_pairs_table"]
    few, all_right = {"by_question": [0.0, 1.0] * 50}, {"by_question": [1.0] * 100}
    before = {"causal, none": {"copa": few, "piqa": few}}
    table = make({"before": before, "ul2r": {"prefix, s2s": {"copa": all_right, "piqa": few}}})
    row = "| ul2r (prefix, s2s) minus before (causal, none) | +25.0 ± 4.9 | 1, 0 of 2 |"
    assert table.splitlines()[2:] == [row]


ESTIMATES = (
    *("causal_bits_per_byte", "infill_bits_per_byte", "left_only_bits_per_byte", "infill_gain", "infill_gain_shuffled"),
    *("suffix_use", "multi_span_bits_per_byte", "format_ok", "line_exact_match"),
)


@pytest.mark.parametrize("base", [True, False])
def test_grid_writes_what_is_kept_of_it(base, monkeypatch, tmp_path):
    """The same fields in the same order: nothing is cut by hand. Training and measures are stand-ins."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    script = runpy.run_path(str(ROOT / "benchmarks" / "fork_grid.py"))
    found = SimpleNamespace(infill_mode="nlu", prediction=str)
    found.estimates = lambda: {name: Estimate(0.5, 0.4, 0.6, 4, 0.1) for name in ESTIMATES}
    paths = sorted((ROOT / "upalm").rglob("*.py"))
    documents = [Document(str(path), path.read_text("utf-8")) for path in paths]
    stand_ins = {
        "enable_compilation_cache": lambda: None,
        "sources": SimpleNamespace(load=lambda _: SimpleNamespace(train=documents[:2], validation=documents)),
        "train": lambda base, *_: (base, 2.0),
        "measure": lambda *_, **__: found,
        "gain": lambda *_: {"infill": 1.0, "left": 2.0, "gain": Estimate(1.0, 0.9, 1.1, 4, 0.1)._asdict()},
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setitem(script["main"].__globals__, name, stand_in)
    options = ["--out", str(tmp_path / "grid.json"), "--mixtures", "ul2r_gaps", "causal", "--peaks", "7e-3"]
    options += ["--batches", "8x256x220", "--n-rows", "4", "--n-decoded", "4", "--base" if base else "--no-base"]
    script["main"](tyro.cli(script["Case"], args=options))
    records = json.loads((tmp_path / "grid.json").read_text())
    assert len(records) == 2 + base

    def fields(record):
        return [list(record), *(list(x) for x in record.values() if isinstance(x, dict) and "mean" in x)]

    for name in ("fork_grid", "fork_grid_lines"):
        kept = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
        for record in kept:
            if base or "mixture" in record:
                assert fields(record) == fields(records[0 if "mixture" not in record else -1])


def test_grid_refuses_at_once_what_it_cannot_train(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    case = runpy.run_path(str(ROOT / "benchmarks" / "fork_grid.py"))["Case"]
    with pytest.raises(ValueError, match="--batches 8x256: expected ROWSxTOKENSxSTEPS"):
        case(Path("grid.json"), batches=("8x256",))
    with pytest.raises(ValueError, match="no mixture 'ul3'"):
        case(Path("grid.json"), mixtures=("ul3",))
    for name in ("fork_grid", "fork_grid_lines"):
        kept = json.loads((ROOT / "docs" / "results" / f"{name}.json").read_text("utf-8"))
        assert case(Path("grid.json"), mixtures=tuple(record["mixture"] for record in kept if "mixture" in record))


def test_figures_of_forks_hold_every_curve_and_row(results):
    figures = runpy.run_path(str(ROOT / "docs" / "results_figures.py"))
    plain = json.loads(json.dumps(results))
    curves, ablations = (figures[f"smollm2_{name}"](plain) for name in ("curves", "ablations"))
    texts = [
        [e.text for e in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
        for svg in (curves, ablations)
    ]
    assert {"UL2R", "control", "a line: infill gain, bits per byte", "0", "50", "300"} <= set(texts[0])
    assert curves.count('mean"/>') == 20 and curves.count('seed"/>') == 40  # 10 panels of 2 forks with 2 seeds
    assert texts[1].count("UL2's seven denoisers") == 4 and "nan" not in curves + ablations


def test_figures_of_results_are_those_of_their_numbers():
    for path, svg in runpy.run_path(str(ROOT / "docs" / "results_figures.py"))["figures"]().items():
        assert path.read_text("utf-8") == svg, "run: python docs/results_figures.py"


def test_pooled_ablations_are_of_the_rows_that_are_kept_beside_them(pool):
    folder = ROOT / "docs" / "results"
    found = pool([json.loads(path.read_text("utf-8")) for path in sorted((folder / "smollm2_rows").glob("*.json"))])
    kept = json.loads((folder / "smollm2_ablations.json").read_text("utf-8"))
    assert found["checkpoints"].keys() == kept["checkpoints"].keys()
    assert found["differences"].keys() == kept["differences"].keys()
    means = [
        (estimate["mean"], found["checkpoints"][name]["estimates"][metric]["mean"])
        for name, checkpoint in kept["checkpoints"].items()
        for metric, estimate in checkpoint["estimates"].items()
    ]
    assert len(means) > 80 and np.allclose(*zip(*means, strict=True), atol=1e-4)
