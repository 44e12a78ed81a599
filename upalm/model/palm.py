"""PaLM's parallel Block, and the Decoder that scans over them (PaLM section 2).

Dims: B batch rows, T positions, D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary, L layers.
"""

import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from upalm.distributed.sharding import LogicalAxes, axis_size, constrain, constrain_stream, gather, shardings, spec
from upalm.model import embedding
from upalm.model.attention import KeyRange, KeyValue, attend, key_range, query_axes
from upalm.model.config import ModelConfig
from upalm.model.layers import (
    Rotary,
    TransposedWeight,
    Weight,
    matmul,
    normalise,
    normalise_heads,
    rotary,
    rotate,
    unit_scale,
)
from upalm.ul2r.rows import Batch


class Block(eqx.Module):
    """PaLM's `x + Attention(norm(x)) + SwiGLU(norm(x))`: both branches read one norm, without biases.

    `ModelConfig.block` also makes it Llama's, or OLMo 2's, with two norms.

    Paper: PaLM (arXiv:2204.02311) section 2.
    """

    AXES: ClassVar[dict[str, LogicalAxes]] = {
        "norm": ("embed",),
        "wq": ("embed", "heads", "head_width"),
        "wk": ("embed", "kv_heads", None),
        "wv": ("embed", "kv_heads", None),
        "wo": ("heads", "head_width", "embed"),
        "w_gate": ("embed", "mlp"),
        "w_up": ("embed", "mlp"),
        "w_down": ("mlp", "embed"),
        "q_norm": ("heads", None),
        "k_norm": ("kv_heads", None),
        "mlp_norm": ("embed",),
        "bq": ("heads", None),
        "bk": ("kv_heads", None),
        "bv": ("kv_heads", None),
    }
    """Logical axes of each parameter; `sharding.PARAM_RULES` maps them to the mesh."""

    N_INPUT_AXES: ClassVar[dict[str, int]] = {"wq": 1, "wk": 1, "wv": 1, "wo": 2, "w_gate": 1, "w_up": 1, "w_down": 1}
    """The weight matrices, and how many of their first axes are inputs."""

    norm: Float[Array, " D"]
    """Before both branches (parallel), before attention (sequential), or after attention (post_norm)."""
    wq: Float[Array, "D N H"]
    wk: Float[Array, "D K H"]
    wv: Float[Array, "D K H"]
    wo: Float[Array, "N H D"]
    w_gate: Float[Array, "D F"]
    w_up: Float[Array, "D F"]
    w_down: Float[Array, "F D"]
    q_norm: Float[Array, "#N H"] | None
    k_norm: Float[Array, "#K H"] | None
    mlp_norm: Float[Array, " D"] | None
    """Before (sequential) or after (post_norm) the feed-forward."""
    bq: Float[Array, "N H"] | None
    bk: Float[Array, "K H"] | None
    bv: Float[Array, "K H"] | None
    config: ModelConfig = eqx.field(static=True)

    def __init__(self, config: ModelConfig, *, key: Array):
        """Kernels from N(0, 1 / n_in) with the fan-in of each logical matrix (PaLM section 5); biases 0."""
        d, n, k, h, f = (config.d_model, config.n_heads, config.n_kv_heads, config.d_head, config.d_ff)
        keys = iter(jax.random.split(key, 7))

        def kernel(n_in: int, *shape: int) -> Array:
            return jax.random.normal(next(keys), shape) * n_in**-0.5

        def head_norm(n_heads: int) -> Array | None:
            n_scales = 1 if config.qk_norm == "shared" else n_heads
            return None if config.qk_norm == "none" else unit_scale(config, n_scales, h)

        self.norm = unit_scale(config, d)
        self.wq, self.wk, self.wv = kernel(d, d, n, h), kernel(d, d, k, h), kernel(d, d, k, h)
        self.wo = kernel(n * h, n, h, d)
        self.w_gate, self.w_up, self.w_down = kernel(d, d, f), kernel(d, d, f), kernel(f, f, d)
        self.q_norm, self.k_norm = head_norm(n), head_norm(k)
        self.mlp_norm = None if config.block == "parallel" else unit_scale(config, d)
        self.bq, self.bk, self.bv = (jnp.zeros((m, h)) if config.qkv_bias else None for m in (n, k, k))
        self.config = config

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        tables: Rotary,
        visible: KeyRange,
        cache: KeyValue | None = None,
        slot: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], KeyValue]:
        """The block's output, and its keys and values.

        Args:
            x_BTD: residual stream.
            tables: rotary tables of the positions.
            visible: keys that each query sees.
            cache: keys and values so far, in decoding. Those of `x_BTD` are written to it, and queries see all of it.
            slot: position of the cache to write at.
        """
        is_cached = cache is not None

        def attention(stream_BTD: Float[Array, "B T D"]) -> tuple[Float[Array, "B T D"], KeyValue]:
            h_BTD = _constrain_input(stream_BTD, is_cached)
            q_BTNH = _constrain_heads(_project(h_BTD, self.wq, self.bq))
            q_BTNH = constrain(q_BTNH, *query_axes(self.config.n_heads, self.config.n_kv_heads))
            q_BTNH = rotate(normalise_heads(q_BTNH, self.q_norm, self.config), tables)
            # each device projects the keys of its positions, or else all devices of the model axis would project all
            kv = self._keys_values(h_BTD if is_cached else stream_BTD, tables, by_position=not is_cached)
            kv = kv if cache is None else cache.write(kv, slot)
            attended_BTNH = _constrain_heads(attend(q_BTNH, *kv.by_row(len(q_BTNH)), visible))
            return matmul(attended_BTNH, self.wo, n_in=2), kv

        if self.config.block == "parallel":  # PaLM
            h_BTD = self._norm(x_BTD, self.norm)
            attended_BTD, kv = attention(h_BTD)
            branches_BTD = attended_BTD + self._feed_forward(_constrain_input(h_BTD, is_cached), is_cached)
            return x_BTD + _constrain_output(branches_BTD, is_cached), kv
        if self.config.block == "sequential":  # Llama
            attended_BTD, kv = attention(self._norm(x_BTD, self.norm))
            x_BTD = x_BTD + _constrain_output(attended_BTD, is_cached)
            h_BTD = _constrain_input(self._norm(x_BTD, self.mlp_norm), is_cached)
            return x_BTD + _constrain_output(self._feed_forward(h_BTD, is_cached), is_cached), kv
        # post_norm: OLMo 2
        attended_BTD, kv = attention(x_BTD)
        x_BTD = x_BTD + self._norm(_constrain_output(attended_BTD, is_cached), self.norm)
        branch_BTD = self._feed_forward(_constrain_input(x_BTD, is_cached), is_cached)
        return x_BTD + self._norm(_constrain_output(branch_BTD, is_cached), self.mlp_norm), kv

    def keys_values(self, x_BTD: Float[Array, "B T D"], tables: Rotary) -> KeyValue:
        """The block's keys and values alone."""
        h_BTD = x_BTD if self.config.block == "post_norm" else self._norm(x_BTD, self.norm)
        return self._keys_values(h_BTD, tables)

    def _keys_values(self, h_BTD: Float[Array, "B T D"], tables: Rotary, by_position: bool = False) -> KeyValue:
        k_BTKH, v_BTKH = _project(h_BTD, self.wk, self.bk), _project(h_BTD, self.wv, self.bv)
        if by_position:
            k_BTKH, v_BTKH = (constrain(x, "batch", "seq", None, None) for x in (k_BTKH, v_BTKH))
        return KeyValue.of(rotate(normalise_heads(k_BTKH, self.k_norm, self.config), tables, is_key=True), v_BTKH)

    def _feed_forward(self, h_BTD: Float[Array, "B T D"], is_cached: bool) -> Float[Array, "B T D"]:
        gate = jax.nn.silu if self.config.gate == "silu" else jax.nn.gelu
        gate_BTF, up_BTF = (matmul(h_BTD, w) for w in (self.w_gate, self.w_up))
        if not is_cached:
            gate_BTF, up_BTF = (constrain(x, "batch", None, "mlp") for x in (gate_BTF, up_BTF))
        return matmul(gate(gate_BTF) * up_BTF, self.w_down)

    def _norm(self, x_BTD: Float[Array, "B T D"], scale: Float[Array, " D"] | None) -> Float[Array, "B T D"]:
        return normalise(x_BTD, scale, self.config)

    def cast(self) -> "Block":
        """The block with its matrices in compute precision: cast before they are gathered, half the bytes are sent."""
        matrices = [getattr(self, name).astype(self.config.compute_dtype) for name in self.N_INPUT_AXES]
        return self._with_matrices(matrices)

    def transposed(self, dtype: str) -> "Block":
        """The block with its matrices in `dtype` and laid out for decoding."""

        def kernel(name: str, n_in: int) -> TransposedWeight:
            weight = TransposedWeight.of(getattr(self, name).astype(dtype), n_in)
            mesh = jax.sharding.get_abstract_mesh()
            if mesh.empty:
                return weight
            split = kernel_spec(name, weight.kernel_OI.shape, mesh)
            return TransposedWeight(jax.lax.with_sharding_constraint(weight.kernel_OI, split), weight.out_shape)

        return self._with_matrices([kernel(name, n_in) for name, n_in in self.N_INPUT_AXES.items()])

    def _with_matrices(self, matrices: list) -> "Block":
        return eqx.tree_at(lambda block: [getattr(block, name) for name in self.N_INPUT_AXES], self, matrices)


def _project(h_BTD: Float[Array, "B T D"], w: Weight, bias_NH: Float[Array, "N H"] | None) -> Float[Array, "B T N H"]:
    x_BTNH = matmul(h_BTD, w)
    return x_BTNH if bias_NH is None else x_BTNH + bias_NH.astype(x_BTNH.dtype)[None, None]


def _constrain_heads(x_BTNH: Float[Array, "B T N H"]) -> Float[Array, "B T N H"]:
    """Queries, or what they attended to, as the weights lie: split over heads, or else over the width of each."""
    by_head = x_BTNH.shape[2] % axis_size("heads") == 0 or x_BTNH.shape[1] == 1
    return constrain(x_BTNH, "batch", None, *(("heads", None) if by_head else (None, "head_width")))


def _constrain_input(h_BTD: Float[Array, "B T D"], is_cached: bool) -> Float[Array, "B T D"]:
    """A branch's input: whole on each device that has its rows. In decoding, few rows go to where the weights are."""
    return constrain(h_BTD, None, None, "embed") if is_cached else constrain(h_BTD, "batch", None, None)


def _constrain_output(branch_BTD: Float[Array, "B T D"], is_cached: bool) -> Float[Array, "B T D"]:
    """A branch's output, as the residual stream lies."""
    if is_cached:
        return constrain(branch_BTD, None, None, "embed")
    return constrain_stream(constrain(branch_BTD, "batch", None, None))  # see `sharding._gather_backward`


_SAVE_MATMULS = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attended"),
)


def head_logits(weight: Float[Array, "V D"] | TransposedWeight, x: Float[Array, "... D"], scale: float) -> Array:
    """`x @ weight.T * scale`, [..., V]: operands in the precision of `x`, sums in fp32, as in the loss."""
    return matmul(x, weight if isinstance(weight, TransposedWeight) else weight.T, sum_dtype="float32") * scale


def scale_embeddings(x: Float[Array, "..."], config: ModelConfig) -> Float[Array, "..."]:
    """Multiply input embeddings by `embed_scale`, rounded to their precision."""
    return x if config.embed_scale == 1 else x * jnp.asarray(config.embed_scale, x.dtype)


class Decoder(eqx.Module):
    """PaLM: embedding, scanned blocks, final norm without a scale, tied head over sqrt(d_model)."""

    AXES: ClassVar[dict[str, LogicalAxes]] = {"embed": embedding.AXES, "norm": ("embed",), "head": embedding.AXES}
    """Logical axes of each parameter outside the blocks."""

    embed: Float[Array, "V D"]
    blocks: Block
    norm: Float[Array, " D"] | None
    head: Float[Array, "V D"] | None
    config: ModelConfig = eqx.field(static=True)

    def __init__(self, config: ModelConfig, *, key: Array):
        """Embeddings from N(0, 1), used unscaled (PaLM section 5)."""
        key_embed, key_blocks = jax.random.split(key)
        self.config = config
        self.embed = jax.random.normal(key_embed, (config.vocab_size, config.d_model))
        block_keys = jax.random.split(key_blocks, config.n_layers)
        self.blocks = eqx.filter_vmap(lambda k: Block(config, key=k))(block_keys)  # leaves gain a leading L
        self.norm = unit_scale(config, config.d_model) if config.final_norm_scale else None
        self.head = None if config.tied_head else self.embed * 1

    def __call__(self, batch: Batch) -> Float[Array, "B T V"]:
        """Logits for every position of packed rows."""
        return self.logits(self.hidden(batch))

    def hidden(self, batch: Batch) -> Float[Array, "B T D"]:
        """Final normalised activations of packed rows."""
        visible = key_range(jnp.asarray(batch.segment_ids), jnp.asarray(batch.prefix_mask))
        return self.forward(jnp.asarray(batch.input_tokens), jnp.asarray(batch.positions), visible)

    def forward(
        self, tokens_BT: Int[Array, "B T"], positions_BT: Int[Array, "B T"], visible: KeyRange
    ) -> Float[Array, "B T D"]:
        """Final normalised activations, given the keys that each query sees."""
        tables = rotary(positions_BT, self.config)

        def body(x_BTD, block):
            x_BTD, _ = gather(block.cast(), Block.AXES)(x_BTD, tables, visible)
            return constrain_stream(x_BTD), None

        if self.config.remat != "none":
            policy = _SAVE_MATMULS if self.config.remat == "matmuls" else None
            body = jax.checkpoint(body, policy=policy)
        x_BTD = constrain_stream(self.embed_tokens(tokens_BT))
        x_BTD, _ = jax.lax.scan(body, x_BTD, self.blocks)
        return normalise(x_BTD, self.norm, self.config)

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Input embeddings in compute precision."""
        return scale_embeddings(embedding.lookup(self.embed, tokens, self.config.compute_dtype), self.config)

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits of final activations."""
        return head_logits(self.head_table, x, self.config.head_scale)

    @property
    def head_table(self) -> Float[Array, "V D"]:
        """Output embeddings."""
        return self.embed if self.head is None else self.head

    def unstacked(self) -> list[Block]:
        """A list of the blocks: decoding copies less this way than under scan."""
        return [jax.tree.map(operator.itemgetter(i), self.blocks) for i in range(self.config.n_layers)]


LOGICAL_AXES: dict[str, LogicalAxes] = {
    **Decoder.AXES,
    **{f"blocks.{name}": (None, *axes) for name, axes in Block.AXES.items()},  # stacked: a leading layer axis
}
"""Logical axes of every parameter by name; `sharding.PARAM_RULES` maps them to the mesh."""


def kernel_spec(name: str, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    """Layout of a matrix of `Block.transposed`, which has its outputs along the rows: split as in training."""
    axes, n_in = Block.AXES[name], Block.N_INPUT_AXES[name]
    rows, columns = ([axis for axis in part if axis] or [None] for part in (axes[n_in:], axes[:n_in]))
    return spec((rows[0], columns[0]), shape, mesh)


def param_shardings(model: Decoder, mesh: Mesh | AbstractMesh) -> Decoder:
    """Sharding of every parameter, as a tree like `model` (of arrays, or of shapes only)."""
    return shardings(model, LOGICAL_AXES, mesh)


def shard(model: Decoder, mesh: Mesh) -> Decoder:
    """Lay out the model's parameters on the mesh."""
    return jax.device_put(model, param_shardings(model, mesh))


def empty_model(config: ModelConfig) -> Decoder:
    """A decoder of shapes, which takes no memory."""
    return eqx.filter_eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
