"""Every recipe's runs can be built, their meshes divide, and their steps trace at full size without a device."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AbstractMesh, AxisType
from support import recipe_configs
from support.open_checkpoints import save, small_model
from support.recipe_files import load_recipe
from support.runs import MODEL, tiny_config

from upalm.distributed.chips import chip_of
from upalm.distributed.sharding import AXES
from upalm.interop.hf_import import import_hf
from upalm.model.config import PALM
from upalm.model.palm import empty_model
from upalm.training import recipes
from upalm.training.config import CheckpointConfig, Scratch, TrainConfig, from_json
from upalm.training.launch import check_mesh, run
from upalm.training.step import TrainState, train_step
from upalm.ul2r.rows import Batch

CHIPS = {"palm_8b": 256, "palm_62b": 512, "palm_540b": 6144, "ul2r_8b": 64, "ul2r_62b": 64, "ul2r_540b": 512}


@lru_cache
def configs_of(*names):
    """Configs of recipes as JSON, by the names of recipe and config; all without names."""
    done = subprocess.run([sys.executable, recipe_configs.__file__, *names], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


def config_of(name):
    """The config of a recipe for one of the paper's sizes."""
    return from_json(TrainConfig, configs_of(name)[f"{name} {name.split('_')[1]}"])


def model_of(name):
    start = config_of(name).start
    return start.model if isinstance(start, Scratch) else PALM[name.split("_")[1]]


def mesh_of(name):
    given, n = config_of(name).mesh, CHIPS[name]
    data = given.data or n // (given.replicas * given.model)
    assert data * given.replicas * given.model == n
    return AbstractMesh((given.replicas, data, given.model), AXES, axis_types=(AxisType.Auto,) * 3)


@pytest.mark.parametrize("name", CHIPS)
def test_meshes_of_the_full_sizes_divide_model_and_batches(name):
    check_mesh(config_of(name), model_of(name), mesh_of(name))


@pytest.mark.parametrize("name", CHIPS)
def test_plans_of_the_full_sizes_have_the_recipes_meshes(name):
    """A recipe that changes its mesh has its row of docs/plans.md renewed."""
    plans = json.loads((Path(__file__).parents[1] / "golden" / "plans.json").read_text())
    meshes = [f["mesh"] for title, f in plans.items() if f["recipe"] == name and "v4:" in title and "--" not in title]
    assert meshes == [dict(mesh_of(name).shape)]


@pytest.mark.parametrize("name", CHIPS)
def test_steps_of_the_full_sizes_trace(name):
    config, model = config_of(name), empty_model(model_of(name))
    optimizer = config.optimizer.build(config.n_steps)
    rows = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((1, config.data.batch_size, 2048), x.dtype),
        Batch(*map(jnp.asarray, Batch.empty(1, 1))),
    )
    state = TrainState(model, jax.eval_shape(optimizer.init, model))
    with jax.sharding.use_abstract_mesh(mesh_of(name)):
        new, reported = jax.eval_shape(partial(train_step, optimizer=optimizer, n_denoisers=3), state, rows)
    assert jax.tree.map(lambda x: x.shape, new) == jax.tree.map(lambda x: x.shape, state)
    assert reported.sums.nll.shape == (3,)


def test_tokens_are_the_papers():
    for name, tokens in {"palm_8b": 780e9, "palm_62b": 795e9, "palm_540b": 775.9e9, "ul2r_540b": 1.31072e9}.items():
        config = config_of(name)
        assert config.data.rows_before(config.n_steps) * config.data.seq_len == pytest.approx(tokens, rel=1e-3)
    rate = config_of("palm_540b").optimizer.schedule.build(255_000)
    assert float(rate(255_000)) == pytest.approx(1.98e-3, rel=1e-3)
    cosine = config_of("ul2r_540b").optimizer.schedule.build(20_000)
    assert [float(cosine(k)) for k in (0, 20_000)] == pytest.approx([1e-4, 1e-6])


def test_every_config_of_every_recipe_builds():
    configs = configs_of()
    assert len(configs) > 15
    for name, config in configs.items():
        assert config["n_steps"] > 0, name


def test_every_recipe_states_paper_command_and_expectation():
    for name in recipes.names():
        text = recipes.find(name).read_text().split('"""')[1]
        for word in ("Paper:", "Command:", "Hardware:", "Expected:"):
            assert word in text, (name, word)


@pytest.mark.parametrize(
    ("kind", "peak"),
    [
        ("TPU v4", 275e12),
        ("TPU v5 lite", 197e12),
        ("TPU v5p", 459e12),
        ("TPU v6 lite", 918e12),
        ("NVIDIA H100 80GB HBM3", 989e12),
    ],
)
def test_peaks_of_chips(kind, peak):
    chip = chip_of(kind)
    assert chip is not None and chip.flops == peak
    assert chip_of("cpu") is None


MEASURES = {"score", *(f"minus {m}_bits_per_byte" for m in ("infill", "continue_causal", "continue_prefix"))}


@pytest.mark.slow
def test_scaling_tiny_goes_from_text_to_plot_and_resumes(tmp_path, source_text, monkeypatch, capsys):
    scaling = load_recipe("scaling_tiny")
    shape = replace(scaling.SIZES["nano"], d_model=32, n_layers=1, d_ff=64, vocab_size=512)
    monkeypatch.setattr(scaling, "SIZES", {"nano": shape})
    (tmp_path / "text.txt").write_text(source_text * 4)
    sizes = {"starts": (2, 4), "n_steps": 2, "n_seeds": 1, "batch_size": 2, "n_rows": 4, "n_questions": 6}
    args = scaling.ScalingTiny(out=tmp_path / "out", data=str(tmp_path / "text.txt"), **sizes)
    scaling.main(args)
    found = json.loads((tmp_path / "out/scaling.json").read_text())
    assert found.keys() == MEASURES
    assert [(s["family"], s["n_seeds"]) for s in found["score"]] == [("control", 1), ("ul2r", 1)] * 2
    assert len(list((tmp_path / "out/results").glob("*/results.json"))) == 2 + 2 * 2
    assert "infill bits per byte: UL2R minus control, in pairs" in capsys.readouterr().out
    differences = json.loads((tmp_path / "out/differences.json").read_text())
    assert [d["n_pairs"] for d in differences["score"]] == [1, 1, 2]
    monkeypatch.setattr("upalm.evals.ladder.load_model", None)
    monkeypatch.setattr("upalm.training.loop.train_step", None)
    scaling.main(args)  # all is there
    assert json.loads((tmp_path / "out/scaling.json").read_text()) == found


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(({name: 0}, f"{name} is 0, expected at least 1") for name in ("n_steps", "n_seeds", "n_rows", "n_questions")),
        *(({"starts": starts}, "expected two or more different") for starts in ((), (500,), (0, 5), (-5, 5), (5, 5))),
    ],
)
def test_scaling_tiny_refuses_settings_before_training(change, message):
    with pytest.raises(ValueError, match=message):
        load_recipe("scaling_tiny").ScalingTiny(**change)


def stages_of_a_run(folder, text):
    """Checkpoints of a causal run, which say themselves what they were trained on."""
    config = tiny_config(folder / "run", str(text), n_steps=4, save_every=2, checkpoints=CheckpointConfig(every=2))
    data = replace(config.data, mixture="causal", seq_len=256, batch_size=2)
    run(replace(config, start=Scratch(replace(MODEL, n_layers=1, seq_len=256)), data=data))
    return [folder / f"run/steps/{step}" for step in (2, 4)], (2 * 2 * 256, 4 * 2 * 256)


def stages_of_an_open_model(folder, text):
    """Two imports of a Llama, which do not."""
    model, given = small_model("Llama 2", max_position_embeddings=256), []
    for n_tokens in (10_000, 20_000):
        hf = save(model, folder / f"hf{n_tokens}", text.read_text()[:50_000])
        import_hf(hf, folder / f"stage{n_tokens}")
        given.append(f"{folder}/stage{n_tokens}:{n_tokens}")
        for parameter in model.parameters():
            parameter.data *= 1.1
    return given, (10_000, 20_000)


@pytest.mark.slow
@pytest.mark.parametrize("stages", [stages_of_a_run, stages_of_an_open_model])
def test_scaling_open_forks_stages_and_resumes(stages, tmp_path, source_text, monkeypatch, capsys):
    scaling, text = load_recipe("scaling_open"), tmp_path / "text.txt"
    text.write_text(source_text * 4)
    starts, n_tokens = stages(tmp_path, text)
    sizes = {"n_steps": 2, "n_seeds": 1, "batch_size": 2, "n_rows": 4, "n_questions": 6}
    args = scaling.ScalingOpen(tuple(map(str, starts)), str(text), tmp_path / "out", **sizes)
    scaling.main(args)
    found = json.loads((tmp_path / "out/scaling.json").read_text())
    assert found.keys() == MEASURES and (tmp_path / "out/scaling.png").is_file()
    for s, (n, family) in zip(found["score"], [(n, f) for n in n_tokens for f in ("control", "ul2r")], strict=True):
        assert s["family"] == family and s["flops"] / s["start_flops"] == pytest.approx((n + 2 * 2 * 256) / n)
        assert s["start_flops"] == 6 * s["n_params"] * n
    assert not list((tmp_path / "out").glob("*/steps"))  # weights go once they are measured
    more = replace(args, n_seeds=2)
    monkeypatch.setattr("upalm.training.loop.train_step", None)
    with pytest.raises(TypeError):  # the second seed alone is trained
        scaling.main(more)
    assert [p.name for p in (tmp_path / "out").glob("*/config.json") if p.parent.name.endswith("_1")] == ["config.json"]
    monkeypatch.setattr("upalm.evals.ladder.load_model", None)
    scaling.main(args)  # all is there
    assert json.loads((tmp_path / "out/scaling.json").read_text()) == found
    with pytest.raises(ValueError, match=r"holds a run with other settings .*n_steps: 2 there, 3 here"):
        scaling.main(replace(args, n_steps=3))
    with pytest.raises(ValueError, match="rows: 4 there, 5 here"):
        scaling.main(replace(args, n_rows=5))
