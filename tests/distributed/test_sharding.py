"""Decoding on meshes of eight devices, in a process that has them."""

import os
import subprocess
import sys

import jax
import pytest
from jax.sharding import PartitionSpec

from upalm.distributed.sharding import make_mesh
from upalm.model.config import PALM
from upalm.model.palm import empty_model, param_shardings

_EIGHT = """
import jax, jax.numpy as jnp, numpy as np, sys
from upalm.checkpoint import Checkpoints, describe, export, load_model
from upalm.decode import Task, DecodingModel, prefill, decode
from upalm.model import Decoder, ModelConfig, shard
from upalm.sampling import Sampler
from upalm.sharding import make_mesh
from upalm.tokenizer import SentencePiece, Symbols
from pathlib import Path

assert len(jax.devices()) == 8
folder = Path(sys.argv[1])
config = ModelConfig(vocab_size=512, d_model=32, n_layers=2, n_heads=8, d_head=8, d_ff=64, seq_len=128)
model = Decoder(config, key=jax.random.key(0))
rng = np.random.default_rng(0)
tasks = [Task(rng.integers(3, 400, n).tolist(), 3 * 4 + 1, 3, (3, 3, 3)) for n in (3, 40, 0, 9, 9, 1, 2, 7)]

def run(model, sampler, **options):
    options = dict(symbols=Symbols(tuple(range(511, 411, -1)), {}), sampler=sampler, num_samples=2, **options)
    found = decode(DecodingModel.of(model), tasks, **options)
    return [[c.tokens.tolist() for c in samples] for samples in found], np.concatenate(
        [c.log_probs for samples in found for c in samples]
    )
"""

_DECODES = """
for sampler in (Sampler(), Sampler(1.0)):
    expected, expected_log_probs = run(model, sampler)
    for sizes in ((8, 1), (1, 8), (2, 4), (4, 2)):
        mesh = make_mesh(*sizes)
        with jax.set_mesh(mesh):
            sharded = shard(model, mesh)
            assert sharded.blocks.wq.sharding.shard_shape((2, 32, 8, 8)) == (2, 32 // sizes[0], 8 // sizes[1], 8)
            tokens, log_probs = run(sharded, sampler)
            assert tokens == expected, sizes
            np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-4)
            rows = jax.device_put(jnp.zeros((8, 33), int), jax.NamedSharding(mesh, jax.P("data")))
            starts = jax.device_put(jnp.zeros(8, int), jax.NamedSharding(mesh, jax.P("data")))
            _, caches = prefill(DecodingModel.of(sharded), rows, starts, max_new=32, attention="prefix")
            for cache in jax.tree.leaves(caches):  # one head, so split by rows alone
                assert cache.sharding.shard_shape(cache.shape) == (8 // sizes[0], 65, 8), (sizes, cache.sharding)
"""

_MOVES = """
tokenizer = SentencePiece.load(sys.argv[2])
expected, _ = run(model, Sampler())
describe(folder, config, tokenizer, {})
written_on = make_mesh(2, 4)
checkpoints = Checkpoints(folder)
checkpoints.save(1, shard(model, written_on), {"count": jnp.zeros(())})
checkpoints.close()
for sizes in ((8, 1), (1, 8), (1, 1)):
    mesh = make_mesh(*sizes)
    with jax.set_mesh(mesh):
        read = load_model(folder, mesh).model
        assert read.embed.sharding.mesh.shape == mesh.shape
        assert run(read, Sampler())[0] == expected, sizes
"""


_READS = """
from upalm.checkpoint import to_arrays
tokenizer = SentencePiece.load(sys.argv[2])
export(folder, model, tokenizer, {})
expected = to_arrays(load_model(folder)[0])
for sizes in ((8, 1), (1, 8), (2, 4)):
    mesh = make_mesh(*sizes)
    read = load_model(folder, mesh).model
    assert read.blocks.wq.sharding.shard_shape((2, 32, 8, 8)) == (2, 32 // sizes[0], 8 // sizes[1], 8)
    for name, array in to_arrays(read).items():
        assert array.sharding.mesh.shape == mesh.shape
        np.testing.assert_array_equal(array, expected[name])
"""


def on_eight_devices(code, *arguments):
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-c", _EIGHT + code, *map(str, arguments)]
    done = subprocess.run(command, env=os.environ | flags, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[:3000]


@pytest.mark.slow
def test_a_mesh_changes_no_sample(tmp_path):
    on_eight_devices(_DECODES, tmp_path)


@pytest.mark.slow
def test_a_checkpoint_of_one_mesh_is_sampled_on_another(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    on_eight_devices(_MOVES, tmp_path / "run", tmp_path / "tokenizer.model")


@pytest.mark.slow
def test_weights_are_read_straight_into_their_shards(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    on_eight_devices(_READS, tmp_path / "weights", tmp_path / "tokenizer.model")


def test_every_parameter_of_540b_has_its_place():
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
        *(f"blocks.{n}" for n in type(model.blocks).AXES if not n.endswith(("q_norm", "k_norm"))),
    }


def test_too_many_devices_are_refused():
    with pytest.raises(ValueError, match=r"3 x 5 needs 15 devices, there are \d+"):
        make_mesh(3, 5)
