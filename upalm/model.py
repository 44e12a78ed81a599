"""`Decoder`: PaLM, and its sizes.

Dims: B batch rows, T positions, D d_model, V vocabulary, L layers.
"""

import operator
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.sharding import AbstractMesh, Mesh
from jaxtyping import Array, Float, Int

from upalm import table
from upalm.batch import Batch
from upalm.layers import Block, KeyRange, OutputMajor, key_range, matmul, normalise, rotary, unit_scale
from upalm.sharding import LogicalAxes, constrain_stream, gather, shardings


@dataclass(frozen=True)
class ModelConfig:
    """Shape of a PaLM. The feed-forward is 4 x d_model in all the paper's sizes, with three matrices."""

    vocab_size: int = 256_000
    """Rows of the embedding table."""
    d_model: int = 4096
    """Width of the residual stream."""
    n_layers: int = 32
    """Number of blocks."""
    n_heads: int = 16
    """Query heads."""
    d_head: int = 256
    """Width of a head."""
    d_ff: int = 16384
    """Width of the feed-forward."""
    seq_len: int = 2048
    """Longest row the model is meant for."""
    n_kv_heads: int = 1
    """Key-value heads: 1 is PaLM's multi-query attention."""
    norm: Literal["rms", "layernorm"] = "rms"
    """Kind of normalisation."""
    norm_eps: float = 1e-6
    """Added to the mean square."""
    norm_offset: float = 1.0
    """Added to the stored norm scales: 1 for T5's zero-centred ones, 0 for those of most open checkpoints."""
    final_norm_scale: bool = False
    """Whether the final norm has a scale; PaLM's has none."""
    qk_norm: Literal["none", "norm", "l2"] = "none"
    """Norm of each query and key head: none (PaLM), the model's own kind (Cohere), or to unit length."""
    rope_theta: float = 10_000.0
    """Base of the rotary frequencies."""
    xpos_scale_base: int = 0
    """Positions over which xPos lets scores fall by its factor once; 0 is RoPE alone."""
    logit_scale: float | None = None
    """Factor of the logits; None is PaLM's 1 / sqrt(d_model)."""
    tied_head: bool = True
    """Whether the output embeddings are the input embeddings."""
    remat: Literal["none", "matmuls", "full"] = "matmuls"
    """What the backward pass computes again: nothing, all but the weight matmuls, or the whole block."""
    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision of activations; parameters are float32."""

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "n_layers", "n_heads", "d_head", "d_ff", "seq_len", "n_kv_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1.")
        if self.norm_eps <= 0 or self.rope_theta <= 0 or self.xpos_scale_base < 0:
            raise ValueError(
                f"norm_eps {self.norm_eps}, rope_theta {self.rope_theta}, xpos_scale_base {self.xpos_scale_base}: "
                "expected above 0, above 0, and at least 0."
            )
        if self.d_head % 2:
            raise ValueError(f"d_head is {self.d_head}, expected an even number (RoPE rotates halves).")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}.")

    @property
    def n_params(self) -> int:
        """Parameters without the norm scales, as the paper counts them (PaLM Table 1)."""
        d, attention = self.d_model, 2 * self.n_heads * self.d_head + 2 * self.n_kv_heads * self.d_head
        tables = 1 if self.tied_head else 2
        return self.n_layers * (d * attention + 3 * d * self.d_ff) + tables * self.vocab_size * d

    @property
    def head_scale(self) -> float:
        """Factor of the logits."""
        return self.d_model**-0.5 if self.logit_scale is None else self.logit_scale


def _palm(d_model: int, n_layers: int, n_heads: int, **changes) -> ModelConfig:
    size = ModelConfig(d_model=d_model, n_layers=n_layers, n_heads=n_heads, d_ff=4 * d_model)
    return replace(size, **changes)


PALM = {
    "tiny": _palm(128, 4, 2, d_head=64, vocab_size=2048, seq_len=256),
    "small": _palm(768, 10, 6, d_head=128, vocab_size=32_000, seq_len=1024),
    "1b": _palm(2048, 16, 8, vocab_size=32_000, compute_dtype="bfloat16"),
    "8b": _palm(4096, 32, 16, compute_dtype="bfloat16"),
    "62b": _palm(8192, 64, 32, compute_dtype="bfloat16", remat="full"),
    "540b": _palm(18432, 118, 48, compute_dtype="bfloat16", remat="full"),
}
"""The paper's sizes (PaLM Table 1: 8b, 62b, 540b) and smaller ones of the same family."""


_MATMULS_SAVED = jax.checkpoint_policies.save_from_both_policies(
    jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    jax.checkpoint_policies.save_only_these_names("attended"),
)


def head_logits(weight: Float[Array, "V D"] | OutputMajor, x: Float[Array, "... D"], scale: float) -> Array:
    """`x @ weight.T * scale` in fp32, [..., V]."""
    return matmul(x.astype(jnp.float32), weight if isinstance(weight, OutputMajor) else weight.T) * scale


class Decoder(eqx.Module):
    """PaLM: embedding, scanned parallel blocks, scale-free final norm, tied head over sqrt(d_model)."""

    AXES: ClassVar = {"embed": table.AXES, "norm": ("embed",), "head": table.AXES}

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
        return self.run(jnp.asarray(batch.input_tokens), jnp.asarray(batch.positions), visible)

    def run(
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
        return table.lookup(self.embed, tokens, self.config.compute_dtype)

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
