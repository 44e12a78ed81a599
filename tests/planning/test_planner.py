"""`upalm plan`: memory and time against the table in docs/plans.md, and refusals."""

import importlib.util
import json
import math
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from rich.console import Console
from support.eight_devices import on_eight_devices, planned_decoding_weights
from support.environment import USERS_FLAGS

import upalm
from upalm.cli import main as cli
from upalm.cli import plan as plan_command
from upalm.distributed.chips import CHIPS, GIB
from upalm.model.config import PALM, ModelConfig
from upalm.model.palm import empty_model
from upalm.planning import lowering, planner, search
from upalm.planning import topology as topology_module
from upalm.planning.hlo import Program
from upalm.planning.search import Request

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "plans.json").read_text())
RENTED = json.loads((Path(__file__).parents[1] / "golden" / "rentable.json").read_text())
needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason=f"no libtpu, the TPU compiler: {topology_module.INSTALL}"
)


def command(*words: str, expect: int = 0, **env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "upalm", "plan", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": USERS_FLAGS, "COLUMNS": "200"} | env,
    )
    assert done.returncode == expect, done.stderr[-2000:]
    return done.stdout if expect == 0 else done.stderr


# --- Full sizes -----------------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "size", "topology"),
    [("ul2r_540b", "540b", "v4:8x8x8"), ("ul2r_62b", "62b", "v4:4x4x4"), ("ul2r_8b", "8b", "v4:4x4x4")],
)
def test_paper_runs_fit_and_send_no_more(name, size, topology, tmp_path):
    """At least 10% of the memory is spare, and at most 5% more is sent than the golden file records."""
    command(name, size, "--topology", topology, "--json", str(tmp_path / "plan.json"))
    plan, recorded = json.loads((tmp_path / "plan.json").read_text()), GOLDEN[f"{name} {size} on {topology}"]
    assert plan["fits"] and plan["memory_gib"]["total"] <= 0.9 * plan["capacity_gib"]
    assert plan["collective_bytes"] <= 1.05 * recorded["collective_bytes"]
    assert plan["step_seconds"] <= 1.05 * recorded["step_seconds"]
    assert plan["params"] == recorded["params"] and plan["devices"] == math.prod(plan["mesh"].values())
    chip = CHIPS["v4"]
    at_peak = plan["flops_per_step"] / plan["devices"] / chip.flops
    assert plan["mfu"] == pytest.approx(at_peak / plan["step_seconds"]) and plan["mfu"] < 1
    assert plan["step_seconds"] >= plan["compiled_flops_per_step"] / plan["devices"] / chip.flops * 0.999
    assert plan["loops_counted_once"] == 0
    assert plan["run_hours"] == pytest.approx(20_000 * plan["step_seconds"] / 3600)


REPEATS = "palm_540b 540b on 2 x v4:12x16x16"
"""The row of v4 that repeats products: the paper's mesh. The row after it repeats none."""


def test_golden_plans_meet_their_goals():
    for name, f in GOLDEN.items():
        assert f["memory_gib"]["total"] <= 0.9 * f["capacity_gib"], name
        of_kinds = sum(gib for kind, gib in f["memory_gib"].items() if kind != "total")
        assert of_kinds == pytest.approx(f["memory_gib"]["total"])
        assert f["memory_gib"]["gradients"] == pytest.approx(f["memory_gib"]["parameters"], rel=1e-3), name
        assert f["memory_gib"]["activations"] > 0, name
    largest = GOLDEN["ul2r_540b 540b on v4:8x8x8"]
    assert largest["step_seconds"] <= 1.6 and largest["serial_seconds"] <= 3.0
    for name, f in GOLDEN.items():
        if ("v4:" in name or "v5p:" in name) and name != REPEATS:
            assert f["remat_share"] == 0, name
    assert GOLDEN["ul2r_62b 62b on v4:4x4x4"]["mfu"] >= 0.95


def test_machines_for_rent_hold_their_steps():
    assert RENTED
    for name, f in RENTED.items():
        assert f["memory_gib"]["total"] <= 0.9 * f["capacity_gib"], name
        assert f["step_seconds"] <= f["serial_seconds"], name


@pytest.mark.parametrize(("model", "needs_more"), [("Qwen3 32B", True), ("OLMo 2 32B", False)])
def test_steps_beyond_the_memory_that_jax_takes_of_a_gpu_say_so(model, needs_more, capsys):
    """Of 74.5 GiB JAX takes 55.9. One step needs 56.2, the other 54.9."""
    recipe = {"recipe": "ul2r", "config": "gpu80", "decodes": 0}
    Console(width=200).print(plan_command._table(recipe | RENTED[f"{model} on H100:8"]))
    output = capsys.readouterr().out
    assert ("not in the 55.9 GiB that JAX takes by default" in output) == needs_more
    assert "of 75 GiB to spare" in output


# --- Small ones -----------------------------------------------------------------------------------


@needs_libtpu
@pytest.mark.slow
def test_tiny_step_on_four_chips_with_and_without_model_axis(tmp_path):
    """FLOPs of the program agree with the formula. Only a model axis has collectives along `model`."""
    plans = {}
    for n_model in (1, 2):
        words = ("palm_tiny", "tiny", "--topology", "v5e:2x2", "--mesh.model", str(n_model))
        command(*words, "--json", str(tmp_path / "plan.json"))
        plans[n_model] = json.loads((tmp_path / "plan.json").read_text())
    one, two = plans[1], plans[2]
    assert one["mesh"] == {"replica": 1, "data": 4, "model": 1} and two["mesh"]["model"] == 2
    assert one["compiled_flops_per_step"] == pytest.approx(one["flops_per_step"], rel=0.15)
    assert {e["axes"] for e in one["collectives"] if e["gib"]} == {"data"}
    assert "model" in {e["axes"] for e in two["collectives"]}
    assert one["memory_gib"]["parameters"] * GIB == pytest.approx(one["params"] * 4 / 4, rel=0.01)
    assert one["seconds"].keys() == {"compute", "memory", "interconnect"}


@needs_libtpu
@pytest.mark.slow
def test_decoding_step_of_four_chips(tmp_path):
    words = ("palm_tiny", "tiny", "--topology", "v5e:2x2", "--mesh.data", "2", "--mesh.model", "2", "--decode", "16")
    output = command(*words, "--json", str(tmp_path / "plan.json"))
    plan, config = json.loads((tmp_path / "plan.json").read_text()), PALM["tiny"]
    assert plan["loops_counted_once"] == 1 and "counted once" in output
    assert "2N + 4LHQT" in output and "whole recipe" not in output
    assert plan["tokens_per_step"] == 16 and plan["memory_gib"].keys() == {"parameters", "cache", "rest", "total"}
    cache = 2 * 16 * config.n_layers * config.seq_len * config.d_head * 4 / 2  # keys and values, of half the rows
    assert plan["memory_gib"]["cache"] * GIB == pytest.approx(cache)
    assert plan["compiled_flops_per_step"] == pytest.approx(plan["flops_per_step"], rel=0.5)


@needs_libtpu
@pytest.mark.slow
def test_nodes_of_gpus_are_timed_and_priced_by_their_own_rates(tmp_path):
    words = ("palm_tiny", "tiny", "--topology", "H100:8", "--slices", "2", "--price", "3", "--data.batch-size", "16")
    output = command(*words, "--json", str(tmp_path / "plan.json"))
    plan, chip = json.loads((tmp_path / "plan.json").read_text()), CHIPS["H100"]
    assert plan["devices"] == 16 and plan["capacity_gib"] * GIB == chip.memory and plan["stands_in"]
    assert plan["seconds"]["compute"] == pytest.approx(plan["compiled_flops_per_step"] / 16 / chip.flops)
    within, between = (plan["seconds"][name] * rate for name, rate in (("interconnect", chip.link), ("network", 50e9)))
    assert within + between == pytest.approx(plan["collective_bytes"])
    hours = [1e9 / plan["tokens_per_step"] * plan[name] / 3600 for name in ("step_seconds", "serial_seconds")]
    assert plan["billion_hours"] == pytest.approx(hours) and "at 3 US dollars per device-hour" in output
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION=0.95" in output


def test_planned_decoding_weights_lie_where_decoding_puts_them():
    on_eight_devices(planned_decoding_weights)


def test_this_machine_is_planned_for(tmp_path):
    output = command("palm_tiny", "tiny", "--topology", "here", "--json", str(tmp_path / "plan.json"))
    plan = json.loads((tmp_path / "plan.json").read_text())
    assert plan["devices"] == 1 and plan["fits"] is None and plan["step_seconds"] is None
    assert plan["compiled_flops_per_step"] == pytest.approx(plan["flops_per_step"], rel=0.25)
    assert "unknown" in output and "papers' formula" in output


@pytest.mark.parametrize(
    ("reported", "capacity"), [({"bytes_limit": 30 * 2**30}, 30), (None, CHIPS["A100"].memory / GIB)]
)
def test_capacity_of_this_machine_is_what_it_reports(reported, capacity, monkeypatch):
    device = SimpleNamespace(device_kind="NVIDIA A100-SXM4-40GB", memory_stats=lambda: reported)
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    target = topology_module.target_of("here")
    assert refused_plan(target, monkeypatch).capacity_gib == capacity


def test_recipe_with_settings_of_its_own_is_planned():
    words = ("--init", str(upalm.PALM_TINY), "--batch-size", "2", "--seq-len", "1024")
    config, model = search.resolve_config(Request("ul2r", "cpu", words, "here", 1))
    assert (config.data.batch_size, config.data.seq_len, model.d_model) == (2, model.seq_len, 144)
    assert config.optimizer.factored
    with pytest.raises(ValueError, match="continues any model: name one with --checkpoint FOLDER"):
        search.resolve_config(Request("ul2r", "cpu", (), "here", 1))


def test_recipe_with_settings_of_its_own_takes_a_mesh_a_bucket_and_writers():
    words = ("--init", str(upalm.PALM_TINY), "--mesh.model", "2", "--mesh.data", "4")
    words += ("--processes.heartbeat-seconds", "9")
    words += ("--checkpoints.folder", "gs://pod/run", "--logging.writers", "wandb")
    config, _ = search.resolve_config(Request("ul2r", "gpu80", words, "H100:8", 1))
    assert (config.mesh.model, config.mesh.data, config.processes.heartbeat_seconds) == (2, 4, 9)
    assert config.checkpoints.folder == "gs://pod/run" and config.logging.writers == ("wandb",)


def test_option_that_a_recipe_lacks_is_named(capsys):
    with pytest.raises(SystemExit, match="2"):
        search.resolve_config(Request("ul2r", "gpu80", ("--init", str(upalm.PALM_TINY), "--meshes", "2"), "here", 1))
    assert "error: unrecognized options: --meshes, 2\n" in capsys.readouterr().err


def test_topologies_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["upalm", "plan", "--list"])
    cli.main()
    output = capsys.readouterr().out
    assert "v4:8x8x8" in output and "v6e:16x16" in output and "here" in output


# --- Bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ul2r_540b", "small", "--topology", "v4:8x8x8"), "no config 'small': choose one of 540b, causal"),
        (("ul2r_54b", "540b", "--topology", "v4:8x8x8"), "did you mean 'ul2r_540b'"),
        (("quickstart", "quickstart"), "settings of its own"),
        (("ul2r_540b",), "needs a config before its options: choose one of 540b, causal"),
        (("ul2r_540b", "540b", "more"), "expected RECIPE CONFIG"),
        ((), "the recipes are finetune"),
        (("ul2r_540b", "540b", "--topology", "v4:8x8x8", "--slices", "0"), "expected at least 1"),
        (("ul2r_540b", "540b", "--topology", "v4:8x8x8", "--decode", "-1"), "expected at least 1, and at least 0"),
        (("palm_tiny", "tiny", "--slices", "2"), "needs a --topology"),
        (("palm_tiny", "tiny", "--json", "nowhere/plan.json"), "there is no folder nowhere"),
        (("palm_tiny", "tiny", "--json", "/tmp"), "--json /tmp is a folder, expected a file"),
        (("palm_tiny", "tiny", "--price", "-1"), "expected US dollars per device-hour"),
        (("palm_tiny", "tiny", "--price", "nan"), "expected US dollars per device-hour"),
    ],
)
def test_impossible_requests_are_refused(words, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["upalm", "plan", *words])
    with pytest.raises(SystemExit, match=f"^error: .*{re.escape(message)}"):
        cli.main()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ul2r_540b", "540b", "--topology", "v4:8x8x9y"), "did you mean 'v4:8x8x"),
        (("ul2r_540b", "540b", "--topology", "H100:2x2"), "unknown topology 'H100:2x2'"),
        (("ul2r_small", "small", "--topology", "here"), "--start.checkpoint"),
    ],
)
def test_requests_that_the_compiler_refuses_end_in_a_line(words, message):
    output = command(*words, expect=1)
    assert message in output and "Traceback" not in output


@needs_libtpu
@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("ul2r_540b", "540b", "--topology", "v4:8x8x8", "--mesh.model", "7"), "needs 511 devices, there are 512"),
        (("ul2r_540b", "540b", "--topology", "v4:8x8x8", "--mesh.model", "8"), "no multiple of the 64 shards"),
        (
            ("palm_tiny", "tiny", "--topology", "v4:4x4x8", "--mesh.model", "128"),
            "n_heads 2 and d_head 64: no",
        ),
        (("ul2r_8b", "8b", "--topology", "v4:3x5x7"), "no slice v4:3x5x7"),
    ],
)
def test_meshes_that_do_not_divide_are_refused(words, message):
    output = command(*words, expect=1)
    assert message in output and "Traceback" not in output


def test_find_mesh_names_an_unknown_topology_once():
    output = command("palm_tiny", "tiny", "--topology", "v4:2x2x1y", "--find-mesh", expect=1)
    assert output.count("unknown topology") == 1 and "did you mean" in output and "divides" not in output


def test_find_mesh_leaves_the_devices_to_its_processes(monkeypatch):
    def hold():
        raise AssertionError("a TPU held by this process has none for the others")

    monkeypatch.setattr(jax, "devices", hold)
    [plan] = search.plan_every_mesh(Request("palm_tiny", "tiny", (), "here", 1)).plans
    assert plan["devices"] == 1


@needs_libtpu
def test_find_mesh_refuses_when_none_divides():
    odd = ("--data.batch-size", "7", "--start.model.d-head", "62")
    output = command("palm_tiny", "tiny", "--topology", "v4:2x2x1", *odd, "--find-mesh", expect=1)
    assert "no mesh of the 4 devices divides" in output


@needs_libtpu
@pytest.mark.slow
def test_find_mesh_ranks_the_fastest_first(tmp_path):
    command("palm_tiny", "tiny", "--topology", "v4:2x2x1", "--find-mesh", "--json", str(tmp_path / "plans.json"))
    plans = json.loads((tmp_path / "plans.json").read_text())
    assert {tuple(f["mesh"].values()) for f in plans} == {(1, 4, 1), (1, 2, 2), (1, 1, 4)}
    times = [f["serial_seconds"] for f in plans]
    assert times == sorted(times) and all(f["fits"] for f in plans)


def test_missing_libtpu_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(ValueError, match="pip install libtpu"):
        topology_module.target_of("v4:8x8x8")


def _killed(_: Request) -> None:
    os.kill(os.getpid(), signal.SIGKILL)  # as the kernel does when memory runs out


def test_killed_compiler_is_an_error_with_advice(monkeypatch):
    monkeypatch.setattr(search, "build_plan", _killed)
    with pytest.raises(ValueError, match="memory ran out"):
        search.plan_in_subprocess(Request("palm_tiny", "tiny", (), "here", 1))


def _variables(_: Request) -> dict[str, str | None]:
    return {name: os.environ.get(name) for name in search.WITHOUT_TPU}


def test_environment_of_the_caller_stays_as_it_was(monkeypatch):
    """A plan for TPUs keeps its own process from them. JAX in this one may still look for a GPU or a TPU."""
    monkeypatch.setattr(search, "build_plan", _variables)
    monkeypatch.delenv("TPU_WORKER_HOSTNAMES", raising=False)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda,cpu")
    before = dict(os.environ)
    assert search.plan_in_subprocess(Request("palm_tiny", "tiny", (), "v4:2x2x1", 1)) == search.WITHOUT_TPU
    assert dict(os.environ) == before
    here = search.plan_in_subprocess(Request("palm_tiny", "tiny", (), "here", 1))
    assert here == {name: before.get(name) for name in search.WITHOUT_TPU}


def test_requests_are_printed_whole():
    words = ("--mesh.model", "16")
    assert str(Request("ul2r_540b", "540b", words, "v4:8x8x8", 1)) == "ul2r_540b 540b --mesh.model 16 on v4:8x8x8"
    assert str(Request("ul2r_8b", "8b", (), "v6e:8x8", 2)) == "ul2r_8b 8b on 2 x v6e:8x8"
    assert str(Request("ul2r_8b", "8b", (), "v4:4x4x4", 1, 256)) == "ul2r_8b 8b on v4:4x4x4, decoding 256 rows"


def test_memory_of_a_refused_program_is_read():
    for error in (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 41.25G of 30.75G hbm.",
        "E1000: the total memory required for HLO temporaries (41.25G) exceeds available HBM (30.75G).",
    ):
        assert planner._refused_gib(error) == 41.25
    assert planner._refused_gib("INTERNAL: something else") is None


_PEELED = """HloModule a_step, is_scheduled=true

%condition (c: (s32[], f32[3,4])) -> pred[] {
  %c = (s32[], f32[3,4]) parameter(0)
  ROOT %less = pred[] custom-call(%c), custom_call_target="less"
}

%body (b: (s32[], f32[3,4])) -> (s32[], f32[3,4]) {
  %b = (s32[], f32[3,4]) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %stack = f32[3,4] get-tuple-element(%b), index=1
  %row = f32[1,4] broadcast(%i), dimensions={}
  %filled = f32[3,4] dynamic-update-slice(%stack, %row, %i, %i)
  ROOT %both = (s32[], f32[3,4]) tuple(%i, %filled)
}

ENTRY %main (p: (s32[], f32[3,4])) -> f32[3,4] {
  %p = (s32[], f32[3,4]) parameter(0)
  %forward = (s32[], f32[3,4]) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %loss = (s32[], f32[3,4]) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"8"}}
  %backward = (s32[], f32[3,4]) while(%p), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"RUNS"}}
  ROOT %gradients = f32[3,4] get-tuple-element(%backward), index=1
}
"""


@pytest.mark.parametrize("n_runs", [3, 2])
def test_gradients_are_counted_where_a_run_is_taken_out_of_their_loop(n_runs):
    program = Program.parse(_PEELED.replace("RUNS", str(n_runs)))
    config = ModelConfig(vocab_size=8, d_model=4, n_layers=3, n_heads=1, d_head=4, d_ff=4, seq_len=4)
    found = planner._loop_bytes(empty_model(config), program, config)
    assert found == {"gradients": 3 * 4 * 4 + 8 * 4 * 4, "activations": 3 * 4 * 4}


def refused_plan(target: topology_module.Target, monkeypatch) -> planner.Plan:
    """Plan of a small step that the compiler refuses."""

    def refuse(*_):
        raise jax.errors.JaxRuntimeError("HLO temporaries (31.50G) exceeds available HBM (30.75G).")

    monkeypatch.setattr(planner, "_compile", refuse)
    config, model = search.resolve_config(Request("palm_tiny", "tiny", (), "here", 1))
    return planner.plan(lowering.training(config, model, None), model, target, None)


def test_plan_of_a_refused_program_does_not_fit(monkeypatch):
    """The compiler's figure holds the arguments already, and less than the chip's 32 GiB are available."""
    for stands_in in (False, True):
        target = topology_module.Target("a chip", CHIPS["v4"], jax.devices()[:1], stands_in)
        plan = refused_plan(target, monkeypatch)
        assert plan.memory_gib == {"total": 31.5} and plan.fits == stands_in


def test_planned_arguments_have_the_shapes_of_a_run():
    config, model = search.resolve_config(Request("palm_tiny", "tiny", (), "here", 1))
    assert isinstance(model, ModelConfig)
    state, batches = lowering.train_arguments(config, model, None, config.data.batch_size)
    assert sum(x.size for x in jax.tree.leaves(state.model)) >= model.n_params
    assert {x.shape for x in batches} == {(1, config.data.batch_size, config.data.seq_len)}
