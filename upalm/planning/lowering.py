"""Training and decoding steps to compile, from shapes in place of arrays."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding, PartitionSpec

from upalm import ul2r
from upalm.distributed.sharding import row_sharding, shapes, shardings, spec
from upalm.inference.decoding import DecodingModel, State, advance
from upalm.inference.grammar import Automaton, Grammar, Progress
from upalm.inference.sampling import Sampler
from upalm.model.attention import KeyValue
from upalm.model.config import ModelConfig
from upalm.model.palm import LOGICAL_AXES, Block, Decoder, empty_model, kernel_spec
from upalm.training.config import TrainConfig
from upalm.training.launch import check_mesh
from upalm.training.step import TrainState, train_step
from upalm.ul2r.rows import Batch
from upalm.ul2r.symbols import Symbols


class Step(NamedTuple):
    """Program to plan."""

    lower: Callable[[], Any]
    held: dict[str, Any]
    """Arrays that stay in memory between steps, by kind."""
    flops_per_token: float
    tokens: int
    run_tokens: int


def training(config: TrainConfig, model: ModelConfig, mesh: Mesh | None) -> Step:
    """Return the training step of a run, at its largest batch.

    Raises:
        ValueError: the mesh divides neither model nor batch.
    """
    check_mesh(config, model, mesh)
    n_rows, seq_len = max(config.data.batch_sizes()), config.data.seq_len
    state, batches = train_arguments(config, model, mesh, n_rows)
    optimizer, n_denoisers = config.optimizer.build(config.n_steps), len(ul2r.mixture(config.data.mixture))
    return Step(
        lambda: train_step.lower(state, batches, optimizer=optimizer, n_denoisers=n_denoisers),
        {"parameters": state.model, "optimizer": state.opt_state},
        model.train_flops_per_token(seq_len),
        n_rows * seq_len,
        config.data.rows_before(config.n_steps) * seq_len,
    )


def decoding(config: TrainConfig, model: ModelConfig, mesh: Mesh | None, n_rows: int) -> Step:
    """Return a decoding step: one token per row, with caches as long as the model's rows.

    Raises:
        ValueError: the mesh divides neither model nor rows.
    """
    data = replace(config.data, batch_size=n_rows, batch_ramp=())
    check_mesh(replace(config, data=data, accumulation=1), model, mesh)
    weights, state, rest = decode_arguments(model, mesh, n_rows)
    return Step(
        lambda: advance.lower(weights, state, *rest, sampler=Sampler()),
        {"parameters": weights, "cache": state.caches},
        model.decode_flops_per_token(),
        n_rows,
        n_rows,
    )


def train_arguments(
    config: TrainConfig, model: ModelConfig, mesh: Mesh | AbstractMesh | None, n_rows: int
) -> tuple[TrainState, Batch]:
    """Return the shapes and shardings of a training step's arguments, as the trainer lays them out."""
    empty, optimizer = empty_model(model), config.optimizer.build(config.n_steps)
    state = TrainState(empty, jax.eval_shape(optimizer.init, empty))
    shape = (config.accumulation, n_rows // config.accumulation, config.data.seq_len)
    sharding = row_sharding(mesh) if mesh is not None else None
    dtypes = [x.dtype for x in Batch.empty(1, config.data.seq_len)]
    batches = Batch(*(jax.ShapeDtypeStruct(shape, dtype, sharding=sharding) for dtype in dtypes))
    return state if mesh is None else shapes(state, shardings(state, LOGICAL_AXES, mesh)), batches


def decode_arguments(
    model: ModelConfig, mesh: Mesh | None, n_rows: int
) -> tuple[DecodingModel, State, tuple[Any, ...]]:
    """Return the shapes and shardings of a decoding step's arguments, as `decode` lays them out."""
    by_row: Any = jax.ShapeDtypeStruct((n_rows,), np.int32)
    cache: Any = jax.ShapeDtypeStruct((n_rows * model.n_kv_heads, model.seq_len, model.d_head), model.compute_dtype)

    def first_arguments(row: jax.Array) -> tuple[State, Grammar, jax.Array]:
        tokens, n = row[:, None], model.vocab_size
        spans = Automaton.of_any_text(n)
        grammar = Grammar.of(row, tokens, row, tokens, symbols=Symbols((), {}), spans=spans, n_embeddings=n)
        state = State(row[0], row, tokens, tokens.astype(np.float32), Progress.start(row), [])
        return state, grammar, jax.random.split(jax.random.key(0), n_rows)

    state, grammar, keys = jax.eval_shape(first_arguments, by_row)
    rows = (state._replace(caches=[KeyValue(cache, cache)] * model.n_layers), by_row, grammar, keys)
    weights = jax.eval_shape(DecodingModel.of, empty_model(model))
    if mesh is not None:
        weights = _with_shardings(weights, partial(unstacked_spec, mesh), mesh)
        lengths = (n_rows, cache.shape[0])
        rows = _with_shardings(rows, lambda _, x: PartitionSpec("data" if x.shape[0] in lengths else None), mesh)
    state, *rest = rows
    return weights, state, (*rest, jax.ShapeDtypeStruct((), np.int32))


def _with_shardings(tree: Any, spec: Callable[[Any, Any], PartitionSpec], mesh: Mesh | AbstractMesh) -> Any:
    def sharding(path: Any, x: Any) -> NamedSharding:
        return NamedSharding(mesh, spec(path, x) if x.ndim else PartitionSpec())

    return shapes(tree, jax.tree_util.tree_map_with_path(sharding, tree))


def unstacked_spec(mesh: Mesh, path: Any, x: Any) -> PartitionSpec:
    """Return the partitioning of a weight of `DecodingModel`: split as in training."""
    names = [getattr(entry, "name", "") for entry in path]
    if names[-1] == "kernel_OI":
        return kernel_spec(names[-2], x.shape, mesh)
    return spec(Decoder.AXES.get(names[-1], Block.AXES.get(names[-1], ())), x.shape, mesh)
