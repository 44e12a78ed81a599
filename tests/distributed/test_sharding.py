"""Layouts of the full sizes against the golden file; decoding, training and checkpoints on meshes of eight devices."""

import math

import jax
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec
from support.eight_devices import (
    decode_on_meshes,
    factored_updates_on_a_mesh,
    move_checkpoint,
    on_eight_devices,
    open_models_on_meshes,
    read_into_shards,
)
from support.layouts import GOLDEN, MESHES, text

from upalm.distributed.sharding import AXES, MeshConfig, make_mesh
from upalm.model.config import PALM
from upalm.model.palm import empty_model, param_shardings

# --- Layouts of the full sizes ---


def test_layouts_are_the_golden_ones():
    assert text() == GOLDEN.read_text(), "if that is meant: PYTHONPATH=tests python -m support.layouts"


def test_no_large_array_lies_whole_on_every_device():
    for size in ("540b", "62b"):
        mesh = AbstractMesh(MESHES[size], AXES, axis_types=(AxisType.Auto,) * 3)
        model = empty_model(PALM[size])
        for leaf, sharding in zip(jax.tree.leaves(model), jax.tree.leaves(param_shardings(model, mesh)), strict=True):
            parts = leaf.size / math.prod(sharding.shard_shape(leaf.shape))
            assert parts >= (mesh.shape["data"] if leaf.size > 1e5 else 1), (size, leaf.shape)


def test_every_parameter_of_540b_is_laid_out():
    """FSDP over `data`, tensor parallelism over `model`, and what they do not divide whole."""
    model = empty_model(PALM["540b"])
    shardings = param_shardings(model, jax.sharding.AbstractMesh((64, 96), ("data", "model")))
    specs = {
        jax.tree_util.keystr(path, simple=True, separator="."): sharding.spec
        for path, sharding in jax.tree_util.tree_leaves_with_path(shardings)
    }
    assert specs["embed"] == PartitionSpec(None, "data")  # 256,000 subwords are not a multiple of 96
    assert specs["blocks.w_up"] == PartitionSpec(None, "data", "model")
    assert specs["blocks.wk"] == PartitionSpec(None, "data", None, None)
    assert specs.keys() == {
        "embed",
        *(f"blocks.{name}" for name in ("norm", "wq", "wk", "wv", "wo", "w_gate", "w_up", "w_down")),
    }


def test_too_many_devices_are_refused():
    with pytest.raises(ValueError, match=r"3 x 5 needs 15 devices, there are \d+"):
        make_mesh(3, 5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MeshConfig(model=3), r"1 replicas x 1 data x 3 model needs 3 devices, there are 1"),
        (MeshConfig(data=2), r"1 replicas x 2 data x 1 model needs 2 devices, there are 1"),
        (MeshConfig(model=0), "at least 1"),
    ],
)
def test_meshes_that_do_not_divide_the_devices_are_refused(config, message):
    if len(jax.devices()) == 1:
        with pytest.raises(ValueError, match=message):
            config.build()
    assert MeshConfig().build() is None or len(jax.devices()) > 1


# --- On eight devices ---


@pytest.mark.slow
def test_mesh_changes_no_sample():
    on_eight_devices(decode_on_meshes)


@pytest.mark.slow
def test_mesh_changes_no_gradient_of_open_models():
    on_eight_devices(open_models_on_meshes)


@pytest.mark.slow
def test_mesh_changes_no_update_of_factored_adafactor():
    on_eight_devices(factored_updates_on_a_mesh)


@pytest.mark.slow
def test_checkpoint_of_one_mesh_opens_on_another(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    on_eight_devices(move_checkpoint, tmp_path / "run", tmp_path / "tokenizer.model")


@pytest.mark.slow
def test_weights_are_read_straight_into_their_shards(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    on_eight_devices(read_into_shards, tmp_path / "weights", tmp_path / "tokenizer.model")
