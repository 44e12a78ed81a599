"""`Decoder`: PaLM, and its sizes.

Dims: B batch rows, T positions, D d_model, V vocabulary, L layers.
"""

import operator
from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from upalm.distributed.sharding import LogicalAxes, constrain, constrain_stream, gather, shardings
from upalm.model import embedding
from upalm.model.attention import KeyRange, KeyValue, attend, key_range
from upalm.model.config import ModelConfig
from upalm.model.layers import Rotary, TransposedWeight, matmul, normalise, normalise_head, rotary, rotate, unit_scale
from upalm.ul2r.rows import Batch


class Block(eqx.Module):
    """`x + Attention(norm(x)) + SwiGLU(norm(x))`: both branches read one norm. No biases.

    Paper: PaLM (arXiv:2204.02311) section 2.
    """

    AXES: ClassVar = {
        "norm": ("embed",),
        "wq": ("embed", "heads", None),
        "wk": ("embed", "kv_heads", None),
        "wv": ("embed", "kv_heads", None),
        "wo": ("heads", None, "embed"),
        "w_gate": ("embed", "mlp"),
        "w_up": ("embed", "mlp"),
        "w_down": ("mlp", "embed"),
        "q_norm": ("heads", None),
        "k_norm": ("kv_heads", None),
    }
    _NORMS: ClassVar = ("norm", "q_norm", "k_norm")

    norm: Float[Array, " D"]
    wq: Float[Array, "D N H"]
    wk: Float[Array, "D K H"]
    wv: Float[Array, "D K H"]
    wo: Float[Array, "N H D"]
    w_gate: Float[Array, "D F"]
    w_up: Float[Array, "D F"]
    w_down: Float[Array, "F D"]
    q_norm: Float[Array, "N H"] | None
    k_norm: Float[Array, "K H"] | None
    config: "ModelConfig" = eqx.field(static=True)

    def __init__(self, config: "ModelConfig", *, key: Array):
        """Kernels from N(0, 1 / n_in) with the fan-in of each logical matrix (PaLM section 5)."""
        d, n, k, h, f = (config.d_model, config.n_heads, config.n_kv_heads, config.d_head, config.d_ff)
        keys = iter(jax.random.split(key, 7))

        def kernel(n_in: int, *shape: int) -> Array:
            return jax.random.normal(next(keys), shape) * n_in**-0.5

        self.norm = unit_scale(config, d)
        self.wq, self.wk, self.wv = kernel(d, d, n, h), kernel(d, d, k, h), kernel(d, d, k, h)
        self.wo = kernel(n * h, n, h, d)
        self.w_gate, self.w_up, self.w_down = kernel(d, d, f), kernel(d, d, f), kernel(f, f, d)
        self.q_norm = unit_scale(config, n, h) if config.qk_norm != "none" else None
        self.k_norm = unit_scale(config, k, h) if config.qk_norm != "none" else None
        self.config = config

    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        tables: Rotary,
        visible: KeyRange,
        cache: "KeyValue | None" = None,
        slot: Int[Array, ""] | int = 0,
    ) -> tuple[Float[Array, "B T D"], "KeyValue"]:
        """The block's output and its keys and values; with a `cache`, they go in at `slot` and all of it is seen."""
        h_BTD = normalise(x_BTD, self.norm, self.config)
        if cache is None:
            h_BTD = constrain(h_BTD, "batch", None, None)
        else:  # few rows: these go to where the weights are, not weights to where the rows are
            h_BTD = constrain(h_BTD, None, None, "embed")
        q_BTNH = constrain(matmul(h_BTD, self.wq), "batch", None, "heads", None)
        q_BTNH = rotate(normalise_head(q_BTNH, self.q_norm, self.config), tables)
        kv = self._keys_values(h_BTD, tables)
        if cache is not None:
            kv = cache.write(kv, slot)
        attended_BTNH = attend(q_BTNH, kv.k, kv.v, visible)
        gated_BTF = jax.nn.silu(matmul(h_BTD, self.w_gate)) * matmul(h_BTD, self.w_up)
        branches_BTD = matmul(attended_BTNH, self.wo, n_in=2) + matmul(gated_BTF, self.w_down)
        if cache is None:
            return x_BTD + constrain_stream(branches_BTD), kv
        return x_BTD + constrain(branches_BTD, None, None, "embed"), kv

    def keys_values(self, x_BTD: Float[Array, "B T D"], tables: Rotary) -> "KeyValue":
        """The block's keys and values alone."""
        return self._keys_values(normalise(x_BTD, self.norm, self.config), tables)

    def _keys_values(self, h_BTD: Float[Array, "B T D"], tables: Rotary) -> "KeyValue":
        k_BTKH = normalise_head(matmul(h_BTD, self.wk), self.k_norm, self.config)
        return KeyValue.of(rotate(k_BTKH, tables, is_key=True), matmul(h_BTD, self.wv))

    def cast(self) -> "Block":
        """With its weights in compute precision, before they are gathered: half the bytes."""
        names = [name for name in self.AXES if name not in self._NORMS]
        weights = [getattr(self, name).astype(self.config.compute_dtype) for name in names]
        return eqx.tree_at(lambda block: [getattr(block, name) for name in names], self, weights)

    def output_major(self, dtype: str) -> "Block":
        """A copy for decoding, its weights in `dtype`."""
        names = {name: 2 if name == "wo" else 1 for name in self.AXES if name not in self._NORMS}
        weights = [TransposedWeight.of(getattr(self, name).astype(dtype), n_in) for name, n_in in names.items()]
        return eqx.tree_at(lambda block: [getattr(block, name) for name in names], self, weights)


_MATMULS_SAVED = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attended"),
)


def head_logits(weight: Float[Array, "V D"] | TransposedWeight, x: Float[Array, "... D"], scale: float) -> Array:
    """`x @ weight.T * scale` in fp32, [..., V]."""
    return matmul(x.astype(jnp.float32), weight if isinstance(weight, TransposedWeight) else weight.T) * scale


class Decoder(eqx.Module):
    """PaLM: embedding, scanned parallel blocks, scale-free final norm, tied head over sqrt(d_model)."""

    AXES: ClassVar = {"embed": embedding.AXES, "norm": ("embed",), "head": embedding.AXES}

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
        """Final normalised activations, given what each query sees."""
        tables = rotary(positions_BT, self.config)

        def body(x_BTD, block):
            x_BTD, _ = gather(block.cast(), Block.AXES)(x_BTD, tables, visible)
            return constrain_stream(x_BTD), None

        if self.config.remat != "none":
            policy = _MATMULS_SAVED if self.config.remat == "matmuls" else None
            body = jax.checkpoint(body, policy=policy)
        x_BTD = constrain_stream(self.embed_tokens(tokens_BT))
        x_BTD, _ = jax.lax.scan(body, x_BTD, self.blocks)
        return normalise(x_BTD, self.norm, self.config)

    def embed_tokens(self, tokens: Int[Array, "B T"]) -> Float[Array, "B T D"]:
        """Input embeddings in compute precision."""
        return embedding.lookup(self.embed, tokens, self.config.compute_dtype)

    def logits(self, x: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits of final activations."""
        return head_logits(self.head_table, x, self.config.head_scale)

    @property
    def head_table(self) -> Float[Array, "V D"]:
        """Output embeddings."""
        return self.embed if self.head is None else self.head

    def unstacked(self) -> list[Block]:
        """The blocks one by one: decoding copies less this way than under scan."""
        return [jax.tree.map(operator.itemgetter(i), self.blocks) for i in range(self.config.n_layers)]


LOGICAL_AXES: dict[str, LogicalAxes] = {
    **Decoder.AXES,
    **{f"blocks.{name}": (None, *axes) for name, axes in Block.AXES.items()},  # stacked: a leading layer axis
}
"""What each axis of each parameter is; `sharding.PARAM_RULES` says where it lies."""


def param_shardings(model: Decoder, mesh: Mesh | AbstractMesh) -> Decoder:
    """The sharding of every parameter, in the shape of the model (arrays, or shapes only)."""
    return shardings(model, LOGICAL_AXES, mesh)


def shard(model: Decoder, mesh: Mesh) -> Decoder:
    """The model with its parameters laid out on the mesh."""
    return jax.device_put(model, param_shardings(model, mesh))


def empty_model(config: ModelConfig) -> Decoder:
    """A decoder of shapes, without memory."""
    return eqx.filter_eval_shape(lambda: Decoder(config, key=jax.random.key(0)))
