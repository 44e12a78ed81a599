"""The architectures of Hugging Face that checkpoints come from and go out as: one row each.

A row says how a model's options follow from its config.json, the names of its weights, and the keys that go back out.
Adding an architecture whose block `ModelConfig` can express is adding a row.

Dims: D d_model, N heads, K key-value heads, H d_head, F d_ff, V vocabulary.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from upalm.model.config import ModelConfig

Settings = dict[str, Any]
"""The content of a Hugging Face config.json."""

_DEFAULTS: Settings = {"tie_word_embeddings": False, "rms_norm_eps": 1e-6, "rope_theta": 10_000.0}

_SIZES = {
    "vocab_size": "vocab_size",
    "d_model": "hidden_size",
    "d_ff": "intermediate_size",
    "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads",
    "n_kv_heads": "num_key_value_heads",
    "d_head": "head_dim",
}
"""Key of config.json of each size of `ModelConfig`."""

_LLAMA3_ROPE = {
    "rope_factor": "factor",
    "rope_low_freq_factor": "low_freq_factor",
    "rope_high_freq_factor": "high_freq_factor",
    "rope_original_seq_len": "original_max_position_embeddings",
}
"""Key of config.json's `rope_parameters` of each option of Llama 3's rotary scaling."""


@dataclass(frozen=True)
class Architecture:
    """A class of transformers beside the options of `ModelConfig` for the same model."""

    name: str
    model_type: str
    options: Settings
    """Options of `ModelConfig` that every model of the class has."""
    norm: str = "input_layernorm"
    """Name there of a block's `norm`."""
    mlp_norm: str = "post_attention_layernorm"
    """Name there of a block's `mlp_norm`."""
    eps_key: str = "rms_norm_eps"
    interleaved: bool = False
    """Whether rotary pairs lie next to each other there; here they lie half a head apart."""
    defaults: Settings = field(default_factory=lambda: _DEFAULTS)
    """Values that transformers takes for keys that config.json leaves out."""
    read: Callable[[Settings], dict[str, Any]] = lambda settings: {}
    """Further options of `ModelConfig` that config.json decides."""
    write: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}
    """Further keys of config.json."""
    required: dict[str, tuple[Any, ...]] = field(default_factory=dict)
    """Keys that must have one of these values where they are given."""
    splits_width: bool = False
    """Whether d_head must be d_model / n_heads."""

    def options_for(self, config: ModelConfig) -> dict[str, Any]:
        """Return the options that a model of the class has, with those that its config.json would decide."""
        return self.options | self.read(self.write(config) | {"hidden_size": config.d_model})

    def differing(self, config: ModelConfig) -> list[str]:
        """Return the options of a model that this class cannot have; norm offsets and scales of 1 are converted."""
        options = self.options_for(config)
        have = {name: getattr(config, name) for name in options} | {"logit_scale": config.head_scale}
        names = [k for k, v in options.items() if k not in ("norm_offset", "final_norm_scale") and have[k] != v]
        return names + ["d_head"] * (self.splits_width and config.d_head * config.n_heads != config.d_model)


_RMS = {"norm": "rms", "norm_offset": 0.0, "final_norm_scale": True, "logit_scale": 1.0, "xpos_scale_base": 0}
_LLAMA = _RMS | {"block": "sequential", "gate": "silu", "embed_scale": 1.0}
_SILU = {"hidden_act": ("silu",), "attention_bias": (False,), "mlp_bias": (False,)}

COHERE = Architecture(
    "CohereForCausalLM",
    "cohere",
    _LLAMA | {"block": "parallel", "norm": "layernorm", "qkv_bias": False, "rope_factor": 1.0},
    eps_key="layer_norm_eps",
    interleaved=True,
    defaults={"tie_word_embeddings": True, "layer_norm_eps": 1e-5, "logit_scale": 0.0625},
    read=lambda s: {"qk_norm": "norm" if s.get("use_qk_norm") else "none", "logit_scale": s.get("logit_scale", 0.0625)},
    write=lambda c: {"use_qk_norm": c.qk_norm != "none", "logit_scale": c.head_scale, "attention_bias": False},
    required={"hidden_act": ("silu",), "attention_bias": (False,)},
)

LLAMA = Architecture(
    "LlamaForCausalLM",
    "llama",
    _LLAMA | {"qkv_bias": False, "qk_norm": "none"},
    write=lambda c: {"attention_bias": False, "mlp_bias": False},
    required=_SILU,
)

MISTRAL = Architecture(
    "MistralForCausalLM",
    "mistral",
    LLAMA.options,
    defaults=_DEFAULTS | {"num_key_value_heads": 8, "sliding_window": 4096},
    write=lambda c: {"sliding_window": None},
    required=_SILU,
)

QWEN2 = Architecture(
    "Qwen2ForCausalLM",
    "qwen2",
    _LLAMA | {"qkv_bias": True, "qk_norm": "none"},
    defaults=_DEFAULTS | {"num_key_value_heads": 32, "use_sliding_window": False},
    write=lambda c: {"use_sliding_window": False, "sliding_window": None},
    required={"hidden_act": ("silu",)},
)

QWEN3 = Architecture(
    "Qwen3ForCausalLM",
    "qwen3",
    _LLAMA | {"qkv_bias": False, "qk_norm": "shared"},
    defaults=QWEN2.defaults | {"head_dim": 128},
    write=lambda c: {"attention_bias": False, "use_sliding_window": False, "sliding_window": None},
    required=_SILU,
)

OLMO2 = Architecture(
    "Olmo2ForCausalLM",
    "olmo2",
    _LLAMA | {"block": "post_norm", "qkv_bias": False, "qk_norm": "flat"},
    norm="post_attention_layernorm",
    mlp_norm="post_feedforward_layernorm",
    defaults=_DEFAULTS | {"rms_norm_eps": 1e-5},
    write=lambda c: {"attention_bias": False},
    required=_SILU | {"clip_qkv": (None,)},
    splits_width=True,
)

_GELU = "gelu_pytorch_tanh"

GEMMA = Architecture(
    "GemmaForCausalLM",
    "gemma",
    _RMS | {"norm_offset": 1.0, "block": "sequential", "gate": "gelu", "qkv_bias": False, "qk_norm": "none"},
    defaults=_DEFAULTS | {"tie_word_embeddings": True, "num_key_value_heads": 16, "head_dim": 256},
    read=lambda s: {"embed_scale": float(s["hidden_size"]) ** 0.5},
    write=lambda c: {"hidden_act": _GELU, "hidden_activation": _GELU, "attention_bias": False},
    required={
        "hidden_act": ("gelu", _GELU),  # the first files say gelu for the tanh form that Gemma has
        "hidden_activation": (None, _GELU),
        "attention_bias": (False,),
        "use_bidirectional_attention": (None, False),
    },
)

ARCHITECTURES = {a.name: a for a in (COHERE, LLAMA, MISTRAL, QWEN2, QWEN3, OLMO2, GEMMA)}
"""By name. A model trained here goes out as the first whose options it has."""


def architecture_of(settings: Settings, source: object) -> Architecture:
    """Return the row of a config.json.

    Raises:
        ValueError: an architecture that is not in the table, with those that are.
    """
    names = settings.get("architectures") or settings.get("model_type")
    name = str(names[0] if isinstance(names, list) else names)
    for row in ARCHITECTURES.values():
        if name in (row.name, row.model_type):
            return row
    raise ValueError(
        f"{source} has architecture {name}: supported are {', '.join(ARCHITECTURES)}, and by `upalm import-palm` the "
        "PaLM of PaLM-rlhf-pytorch."
    )


def architecture_for(config: ModelConfig) -> Architecture:
    """Return the first architecture that has a model's options.

    Raises:
        ValueError: none has them; the nearest is named with the options that differ.
    """
    differing = {name: row.differing(config) for name, row in ARCHITECTURES.items()}
    nearest = min(differing, key=lambda name: len(differing[name]))
    if not differing[nearest]:
        return ARCHITECTURES[nearest]
    row = ARCHITECTURES[nearest]
    options = row.options_for(config) | {"d_head": config.d_model // config.n_heads}
    options |= {"qk_norm": "none"} if row is COHERE else {}
    wanted = ", ".join(f"--start.model.{k.replace('_', '-')} {options[k]}" for k in differing[nearest])
    have = ", ".join(f"{k} {getattr(config, k)}" for k in differing[nearest])
    raise ValueError(
        f"no architecture of transformers in the table has this model's options. {nearest} is nearest and lacks {have}:"
        f" train with {wanted} to export."
    )


# --- config.json ----------------------------------------------------------------------------------


def model_config(settings: Settings, source: object) -> ModelConfig:
    """Return the shape and options of the model that a config.json describes.

    Rows are as long as the shortest of the positions that it was trained for and its sliding window.

    Raises:
        ValueError: an architecture that is not in the table, a setting that cannot be had here, or a missing one.
    """
    row = architecture_of(settings, source)
    values = _Values(row.defaults | settings, source)
    rope = _Values(values.rope(), source)
    _refuse(values, rope, row)
    n_heads, n_positions = values.size("num_attention_heads"), values.size("max_position_embeddings")
    defaults = {"head_dim": values.size("hidden_size") // n_heads, "num_key_value_heads": n_heads}
    config: dict[str, Any] = {name: values.size(key, defaults.get(key)) for name, key in _SIZES.items()}
    config |= {
        "seq_len": min(n_positions, _window(values) or n_positions),
        "norm_eps": values.number(row.eps_key),
        "rope_theta": rope.number("rope_theta", values.settings.get("rope_theta")),
        "tied_head": bool(values.settings["tie_word_embeddings"]),
    }
    config |= row.options | row.read(values.settings)
    if _rope_kind(rope) == "llama3":
        config |= {name: rope.number(key) for name, key in _LLAMA3_ROPE.items()}
        config["rope_original_seq_len"] = rope.size("original_max_position_embeddings")
    try:
        return ModelConfig(**config)
    except ValueError as e:
        raise ValueError(f"{source}/config.json: {e}") from e


@dataclass(frozen=True)
class _Values:
    """The settings of a config.json, each checked when it is read."""

    settings: Settings
    source: object

    def size(self, key: str, default: Any = None) -> int:
        value = self._value(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 1 << 31:
            raise ValueError(f"{self.source}/config.json: {key} is {value!r}, expected a whole number of at least 1.")
        return value

    def number(self, key: str, default: Any = None) -> float:
        value = self._value(key, default)
        if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
            raise ValueError(f"{self.source}/config.json: {key} is {value!r}, expected a number.")
        return float(value)

    def _value(self, key: str, default: Any) -> Any:
        value = self.settings.get(key)
        if (value := default if value is None else value) is None:
            raise ValueError(f"{self.source}/config.json lacks {key}.")
        return value

    def rope(self) -> Settings:
        key = "rope_scaling" if self.settings.get("rope_scaling") else "rope_parameters"  # as transformers takes them
        rope = self.settings.get(key) or {}
        if not isinstance(rope, dict):
            raise ValueError(f"{self.source}/config.json: {key} is {rope!r}, expected an object.")
        return rope


def _rope_kind(rope: _Values) -> str:
    return str(rope.settings.get("rope_type") or rope.settings.get("type") or "default")


def _window(values: _Values) -> int | None:
    """Return the sliding window; rows up to it are as without one."""
    is_used = values.settings.get("use_sliding_window") is not False
    return values.size("sliding_window") if is_used and values.settings.get("sliding_window") is not None else None


def longest_row_is(settings: Settings, row: Architecture) -> str:
    """Say which setting of a config.json limits the rows of its model."""
    values = _Values(row.defaults | settings, "")
    window, n_positions = _window(values), values.size("max_position_embeddings")
    return "its sliding window" if window is not None and window < n_positions else "the positions it was trained for"


def _refuse(values: _Values, rope: _Values, row: Architecture) -> None:
    settings, source = values.settings, values.source
    theta = rope.number("rope_theta", settings.get("rope_theta") or 0.0)
    kinds = {"default"} if row.name == COHERE.name else {"default", "llama3"}
    mixed_layers = {str(kind) for kind in settings.get("layer_types") or ()}
    mixed_layers = set() if mixed_layers in ({"full_attention"}, {"sliding_attention"}) else mixed_layers
    experts = [k for k in ("num_experts", "num_local_experts", "n_routed_experts") if settings.get(k)]
    wrong = [f"{k} {settings[k]}" for k, ok in row.required.items() if k in settings and settings[k] not in ok]
    wrong += [f"rope_type {_rope_kind(rope)}"] * (_rope_kind(rope) not in kinds)
    wrong += [f"rope_theta {theta}"] * (theta <= 0)
    wrong += ["quantization_config"] * (settings.get("quantization_config") is not None)
    wrong += [f"{k} {settings[k]} (a mixture of experts)" for k in experts]
    wrong += [f"layer_types {sorted(mixed_layers)}"] * bool(mixed_layers)
    factor = rope.settings.get("partial_rotary_factor", settings.get("partial_rotary_factor"))
    wrong += [f"partial_rotary_factor {factor}"] * (factor not in (1.0, None))
    if wrong:
        raise ValueError(
            f"{source}/config.json has {', '.join(wrong)}: {row.name} is read without biases beside its own, with its "
            f"own activation, rotary embeddings of kind {' or '.join(sorted(kinds))} with their rope_theta, the same "
            "attention in all layers, no experts, and weights that are not quantised."
        )


def settings_of(config: ModelConfig, row: Architecture, dtype: str) -> dict[str, Any]:
    """Return the config.json of a model as one of an architecture, without its token ids."""
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    if config.rope_factor != 1:
        rope |= {"rope_type": "llama3"} | {key: getattr(config, name) for name, key in _LLAMA3_ROPE.items()}
    return {
        "architectures": [row.name],
        "model_type": row.model_type,
        **{key: getattr(config, name) for name, key in _SIZES.items()},
        "hidden_act": "silu",
        "max_position_embeddings": config.seq_len,
        row.eps_key: config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_parameters": rope,
        "tie_word_embeddings": config.tied_head,
        "attention_dropout": 0.0,
        "torch_dtype": dtype,
        "use_cache": True,
    } | row.write(config)
