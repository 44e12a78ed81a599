"""Programs on meshes of eight fake devices. A test calls `on_eight_devices`, which starts a process that has them."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from support.environment import with_devices

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import describe, export, load_model
from upalm.checkpoints.manager import Checkpoints
from upalm.data.tokenizer import SentencePiece
from upalm.distributed.sharding import constrain_params, make_mesh, row_sharding
from upalm.inference.config import GenerationConfig
from upalm.inference.decoding import DecodingModel, Task, decode, prefill
from upalm.inference.grammar import Rules
from upalm.inference.sampling import Sampler
from upalm.model.config import ModelConfig
from upalm.model.palm import LOGICAL_AXES, Decoder, shard
from upalm.planning.hlo import Program
from upalm.planning.lowering import unstacked_spec
from upalm.training.loss import loss_fn
from upalm.training.optim import Adafactor
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols

SHAPE = dict(vocab_size=512, d_model=32, n_layers=2, n_heads=8, d_head=8, d_ff=64, seq_len=128)
CONFIG = ModelConfig(**SHAPE)
OPEN_MODELS = {
    "six heads, which no mesh divides": ModelConfig(**(SHAPE | {"n_heads": 6})),
    "two key heads, which four devices do not divide": ModelConfig(
        **SHAPE, n_kv_heads=2, block="sequential", qkv_bias=True, qk_norm="shared", rope_factor=8.0, gate="gelu"
    ),
    "norms after, over all heads at once": ModelConfig(
        **SHAPE,
        n_kv_heads=8,
        block="post_norm",
        qk_norm="flat",
        tied_head=False,
        final_norm_scale=True,
        embed_scale=2.0,
    ),
}


def on_eight_devices(program: Callable[..., None], *arguments: str | Path) -> None:
    """Run a function of this module, which takes strings, in a process with eight devices."""
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    command = [sys.executable, "-m", "support.eight_devices", program.__name__, *map(str, arguments)]
    env = with_devices(8) | {"PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


def _decode(model: Decoder, sampler: Sampler = Sampler()) -> tuple[list, np.ndarray]:
    """Tokens and log-probabilities of eight prompts with gaps, two samples each where they are drawn."""
    rng = np.random.default_rng(0)
    tasks = [Task(rng.integers(3, 400, n).tolist(), 3 * 4 + 1, 3, (3, 3, 3)) for n in (3, 40, 0, 9, 9, 1, 2, 7)]
    symbols = Symbols(tuple(range(511, 411, -1)), {})
    config = GenerationConfig(sampler=sampler, num_samples=2 if sampler.temperature else 1)
    results = decode(DecodingModel.of(model), tasks, config, Rules(symbols))
    samples = [sample for some in results for sample in some]
    return [x.tokens.tolist() for x in samples], np.concatenate([x.log_probs for x in samples])


def decode_on_meshes() -> None:
    """Every sample is that of one device, and caches are split by rows."""
    model = Decoder(CONFIG, key=jax.random.key(0))
    for sampler, meshes in ((Sampler(1.0), ((8, 1), (1, 8), (2, 4))), (Sampler(), ((2, 4),))):
        expected, expected_log_probs = _decode(model, sampler)
        for n_data, n_model in meshes:
            mesh = make_mesh(n_data, n_model)
            with jax.set_mesh(mesh):
                sharded = shard(model, mesh)
                assert sharded.blocks.wq.sharding.shard_shape((2, 32, 8, 8)) == (2, 32 // n_data, 8 // n_model, 8)
                tokens, log_probs = _decode(sharded, sampler)
                assert tokens == expected, (n_data, n_model)
                np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-4)
                by_row = jax.NamedSharding(mesh, jax.P("data"))
                rows, starts = (jax.device_put(jnp.zeros(shape, int), by_row) for shape in ((8, 33), (8,)))
                _, caches = prefill(DecodingModel.of(sharded), rows, starts, max_new=32, attention="prefix")
                for cache in jax.tree.leaves(caches):
                    assert cache.sharding.shard_shape(cache.shape) == (8 // n_data, 65, 8), cache.sharding


def open_models_on_meshes() -> None:
    """Loss, every gradient and every sample of open models' blocks are those of one device."""
    rng, batch = np.random.default_rng(0), Batch.empty(8, 32)
    for name, low, high in (("input_tokens", 3, 512), ("target_tokens", 3, 512), ("loss_weights", 0, 2)):
        getattr(batch, name)[:] = rng.integers(low, high, (8, 32))
    batch.segment_ids[:], batch.positions[:] = 1 + np.arange(32) // 20, np.arange(32) % 20
    batch.prefix_mask[:] = batch.positions < 8
    step = eqx.filter_jit(eqx.filter_value_and_grad(lambda model, batch: loss_fn(model, batch)[0]))
    for name, config in OPEN_MODELS.items():
        model = Decoder(config, key=jax.random.key(0))
        expected_loss, expected_gradient = step(model, batch)
        expected = to_arrays(expected_gradient)
        for n_data, n_model in ((1, 8), (2, 4)):
            mesh = make_mesh(n_data, n_model)
            with jax.set_mesh(mesh):
                sharded = shard(model, mesh)
                rows = jax.device_put(batch, jax.NamedSharding(mesh, jax.P(*row_sharding(mesh).spec[1:])))
                loss, gradient = step(sharded, rows)
            np.testing.assert_allclose(loss, expected_loss, rtol=1e-5)
            for parameter, array in to_arrays(gradient).items():
                scale = np.abs(expected[parameter]).max()
                message = f"{name}, {parameter} on {n_data} x {n_model}"
                np.testing.assert_allclose(array, expected[parameter], atol=2e-5 * scale, err_msg=message)
        expected_tokens, expected_log_probs = _decode(model)
        mesh = make_mesh(2, 4)
        with jax.set_mesh(mesh):
            tokens, log_probs = _decode(shard(model, mesh))
        assert tokens == expected_tokens, name
        np.testing.assert_allclose(log_probs, expected_log_probs, atol=1e-4)


def factored_updates_on_a_mesh() -> None:
    """Two updates of factored Adafactor are those of one device; its state lies as its parameters do, or whole."""
    model, optimizer = Decoder(CONFIG, key=jax.random.key(0)), Adafactor(factored=True).build(10)
    gradient = jax.tree.map(lambda x: jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape), model)

    @jax.jit
    def updates(model, gradient):
        _, state = optimizer.update(gradient, optimizer.init(model), model)
        updates, state = optimizer.update(gradient, state, model)
        return constrain_params((updates, state), LOGICAL_AXES)

    expected = to_arrays(updates(model, gradient))
    mesh = make_mesh(2, 4)
    with jax.set_mesh(mesh):
        results = updates(shard(model, mesh), shard(gradient, mesh))
    moments = results[1][1][0]
    assert moments.rows.blocks.wq.sharding.is_fully_replicated
    assert not results[1][4].ema.blocks.wq.sharding.is_fully_replicated
    for name, array in to_arrays(results).items():
        np.testing.assert_allclose(
            np.float32(array),
            np.float32(expected[name]),
            rtol=1e-2 * (array.dtype == jnp.bfloat16) + 1e-5,
            err_msg=name,
        )


def move_checkpoint(folder: str, tokenizer_file: str) -> None:
    """A checkpoint that one mesh wrote has the same parameters on others, each device's part on each."""
    model, tokenizer = Decoder(CONFIG, key=jax.random.key(0)), SentencePiece.load(Path(tokenizer_file))
    describe(Path(folder), CONFIG, tokenizer, {})
    checkpoints = Checkpoints(Path(folder))
    checkpoints.save(1, shard(model, make_mesh(2, 4)), {"count": jnp.zeros(())})
    checkpoints.close()
    for sizes in ((8, 1), (1, 8), (1, 1)):
        _check_layout(load_model(Path(folder), make_mesh(*sizes)).model, to_arrays(model), *sizes)


def read_into_shards(folder: str, tokenizer_file: str) -> None:
    """Exported weights are read as each device's part."""
    export(Path(folder), Decoder(CONFIG, key=jax.random.key(0)), SentencePiece.load(Path(tokenizer_file)), {})
    expected = to_arrays(load_model(Path(folder)).model)
    for sizes in ((8, 1), (1, 8), (2, 4)):
        _check_layout(load_model(Path(folder), make_mesh(*sizes)).model, expected, *sizes)


def _check_layout(model: Decoder, expected: dict, n_data: int, n_model: int) -> None:
    """The parameters are those expected, each device's part on each."""
    assert model.blocks.wq.sharding.shard_shape((2, 32, 8, 8)) == (2, 32 // n_data, 8 // n_model, 8)
    for name, array in to_arrays(model).items():
        assert array.sharding.mesh.shape == make_mesh(n_data, n_model).shape
        np.testing.assert_array_equal(array, expected[name])


def _collectives(function: Callable, *specs_and_shapes: tuple[jax.P, tuple[int, ...]]) -> Iterable[tuple]:
    mesh = make_mesh(4, 2)
    arguments = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=jax.NamedSharding(mesh, spec))
        for spec, shape in specs_and_shapes
    ]
    with jax.set_mesh(mesh):
        text = jax.jit(function).lower(*arguments).compile().as_text()
    return Program.parse(text).work(dict(mesh.shape)).collectives.items()


def _replicated(x: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(x, jax.P(None, None))


def collectives_of_programs() -> None:
    """Collectives are counted by kind and mesh axes, with the bytes that a chip sends."""
    [(gather, n)] = _collectives(lambda x: _replicated(jnp.sin(x)), (jax.P("data"), (64, 32)))
    assert (gather.kind, gather.axes, gather.n_devices, n) == ("all-gather", ("data",), 4, 1), gather
    assert gather.n_bytes == 64 // 4 * 32 * 4 * 3, gather

    [(reduce, n)] = _collectives(lambda x: jnp.sum(x), (jax.P(None, "model"), (64, 32)))
    assert (reduce.kind, reduce.axes, reduce.n_devices, n) == ("all-reduce", ("model",), 2, 1), reduce

    def loop(x, w):
        return jax.lax.scan(lambda x, _: (jnp.tanh(_replicated(x @ w)), None), x, None, length=5)[0]

    [(reduce, n)] = _collectives(loop, (jax.P(None, None), (64, 32)), (jax.P("model", None), (32, 32)))
    assert (reduce.kind, reduce.axes, n) == ("all-reduce", ("model",), 5), (reduce, n)
    assert reduce.n_bytes == 2 * 64 * 32 * 4 // 2, reduce


def planned_decoding_weights() -> None:
    """Plans of decoding lay out weights as `DecodingModel` does, for PaLM's block and for open models'."""
    mesh = make_mesh(2, 4)
    for config in (CONFIG, *OPEN_MODELS.values()):
        with jax.set_mesh(mesh):
            decoding = DecodingModel.of(shard(Decoder(config, key=jax.random.key(0)), mesh))
        for path, x in jax.tree_util.tree_leaves_with_path(decoding):
            planned = jax.NamedSharding(mesh, unstacked_spec(mesh, path, x))
            assert planned.is_equivalent_to(x.sharding, x.ndim), (path, planned.spec, x.sharding)


if __name__ == "__main__":
    assert len(jax.devices()) == 8
    globals()[sys.argv[1]](*sys.argv[2:])
