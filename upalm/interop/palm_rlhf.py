"""Import of `PaLM` of PaLM-rlhf-pytorch, the layout in which PaLM models of 0.15B, 0.41B and 1.1B were published.

Dims: D d_model, N heads, H d_head, F d_ff.
"""

import re
from collections.abc import Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from upalm.checkpoints.arrays import to_arrays
from upalm.checkpoints.folder import WEIGHTS, describe
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data.hf_tokenizer import companions
from upalm.data.roles import choose_roles
from upalm.interop.files import ArrayWriter, check_new, new_folder, refuse_pointer
from upalm.interop.hf_import import Imported, import_tokenizer
from upalm.model.config import ModelConfig
from upalm.model.palm import empty_model

_LAYER = re.compile(r"layers\.(\d+)\.(?:fn\.)?(.+)")


_WRAPPERS = re.compile(r"^(?:_orig_mod\.|module\.)+")
"""Prefixes that torch.compile and DistributedDataParallel put in front of every name."""

_COMPUTED = re.compile(r".*\.(beta|inv_freq|scale|pos_emb|pos_emb_scale|mask)")


def import_palm(
    source: Path, dest: Path, *, tokenizer: Path, xpos_scale_base: int = 512, seq_len: int = 2048, eos_id: int = 0
) -> Imported:
    """Read a `.pt` file of that class into a folder that `load_model` opens. The file is never unpickled.

    Args:
        source: state dict, as `torch.save(palm.state_dict(), ...)` writes.
        dest: folder to make.
        tokenizer: folder with the model's tokenizer.json (the published ones have GPT-NeoX's).
        xpos_scale_base: the class's `rotary_xpos_scale_base`, which the file does not hold; 0 for plain rotary.
        seq_len: longest row the model is meant for, which the file does not hold either.
        eos_id: begins and ends texts (0 is GPT-NeoX's `<|endoftext|>`).

    Raises:
        ValueError: torch is absent, a damaged file or one with code in it, another layout, a tokenizer larger than the
            embedding, or a destination that exists.
    """
    check_new(dest)
    arrays = _Arrays(_state_dict(source), source)
    config = _config(arrays, xpos_scale_base, seq_len)
    roles_of = partial(choose_roles, bos_id=eos_id, eos_id=eos_id, n_rows=config.vocab_size)
    vocabulary = import_tokenizer(tokenizer, config.vocab_size, roles_of, companions(tokenizer))
    named = {"embed": arrays.take("token_emb.weight"), "norm": arrays.take("norm.gamma")}
    layers = [_block(arrays, i, config) for i in range(config.n_layers)]
    named |= {f"blocks.{name}": np.stack([layer[name] for layer in layers]) for name in layers[0]}
    arrays.refuse_rest(tied=named["embed"])
    wanted = {name: named[name] for name in to_arrays(empty_model(config))}
    with new_folder(dest) as folder:
        describe(folder, config, vocabulary, {"imported": "PaLM-rlhf-pytorch"}, CheckpointInfo(gaps_trained=False))
        layout = {name: (a.dtype, a.shape) for name, a in wanted.items()}
        with closing(ArrayWriter(folder / WEIGHTS, layout)) as writer:
            for name, array in wanted.items():
                writer.write(name, 0, array)
    return Imported(dest, config, vocabulary, "F32", sorted(arrays.computed), "as --seq-len says")


def _state_dict(source: Path) -> Mapping[str, Any]:
    try:
        import torch
    except ImportError as e:
        raise ValueError("a .pt file is read with torch: pip install torch (a CPU build will do).") from e
    import pickle
    import zipfile

    if not source.is_file():
        raise ValueError(f"no file {source}.")
    refuse_pointer(source)
    is_mapped = zipfile.is_zipfile(source)  # files of torch before 1.6 are of another format, which it reads whole
    try:
        content = torch.load(source, map_location="cpu", weights_only=True, mmap=is_mapped)
    except (pickle.UnpicklingError, RuntimeError, ValueError, EOFError, OSError) as e:
        reason = str(e).strip().split("\n")[0]
        raise ValueError(f"{source} is damaged, or holds more than weights, which is not read: {reason}") from e
    state = content.get("model", content) if isinstance(content, dict) else content
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise ValueError(f"{source} is no state dict: expected tensors by name.")
    return {_WRAPPERS.sub("", name): tensor for name, tensor in state.items()}


class _Arrays:
    """The tensors of a file, taken one by one, so that what is left over shows."""

    def __init__(self, tensors: Mapping[str, Any], source: Path):
        self.computed = {name for name in tensors if _COMPUTED.fullmatch(name)}
        learnt = tensors.keys() - self.computed
        self._left = {re.sub(r"^layers\.(\d+)\.fn\.", r"layers.\1.", name): tensors[name] for name in learnt}
        self.source = source
        betas = [tensors[name] for name in self.computed if name.endswith(".beta")]
        if any(bool((beta != 0).any()) for beta in betas):
            raise ValueError(f"{source} has norms with a bias (beta): the class never trains one.")

    def shape(self, name: str) -> tuple[int, ...]:
        if name not in self._left:
            raise ValueError(f"{self.source} lacks {name}: it is not of PaLM-rlhf-pytorch's PaLM.")
        return tuple(self._left[name].shape)

    def has(self, name: str) -> bool:
        return name in self._left

    def n_layers(self) -> int:
        return 1 + max((int(m[1]) for name in self._left if (m := _LAYER.fullmatch(name))), default=-1)

    def take(self, name: str, *shape: int) -> np.ndarray:
        if shape and self.shape(name) != shape:
            raise ValueError(f"{self.source}: {name} has shape {self.shape(name)}, expected {shape}.")
        self.shape(name)
        return self._left.pop(name).float().numpy()

    def refuse_rest(self, tied: np.ndarray) -> None:
        head = self._left.pop("to_logits.weight", None)
        if head is not None and not np.array_equal(head.float().numpy(), tied):
            raise ValueError(f"{self.source}: to_logits.weight differs from token_emb.weight, which the class ties.")
        if self._left:
            names = sorted(self._left)
            raise ValueError(f"{self.source} has {names[:3]} ({len(names)} tensors) that are no weights of PaLM.")


def _config(arrays: _Arrays, xpos_scale_base: int, seq_len: int) -> ModelConfig:
    """All that shapes tell: of the fused product of N H + 2 H + 2 F rows, the two ways out give N H and F."""
    (vocab_size, d_model), n_layers = arrays.shape("token_emb.weight"), arrays.n_layers()
    if n_layers == 0:
        raise ValueError(f"{arrays.source} has no layers: it is not of PaLM-rlhf-pytorch's PaLM.")
    (n_fused, _), (_, width) = (arrays.shape(f"layers.0.{name}.weight") for name in ("fused_attn_ff_proj", "attn_out"))
    d_ff = arrays.shape("layers.0.ff_out.2.weight")[1]
    d_head, odd = divmod(n_fused - width - 2 * d_ff, 2)
    if odd or d_head < 1 or width % d_head:
        raise ValueError(
            f"{arrays.source}: a fused product of {n_fused} rows does not fit {width} attention outputs and a "
            f"feed-forward of {d_ff}: it is not of PaLM-rlhf-pytorch's PaLM."
        )
    return ModelConfig(
        vocab_size=vocab_size,
        d_model=d_model,
        n_layers=n_layers,
        n_heads=width // d_head,
        d_head=d_head,
        d_ff=d_ff,
        seq_len=seq_len,
        norm="layernorm",
        norm_eps=1e-5,
        final_norm_scale=True,
        qk_norm="l2" if arrays.has("layers.0.q_scale") else "none",
        xpos_scale_base=xpos_scale_base,
        logit_scale=1.0,
    )


def _block(arrays: _Arrays, i: int, config: ModelConfig) -> dict[str, np.ndarray]:
    """The fused product holds q, k, v, then the feed-forward's value, then its gate."""
    d, n, h, f = config.d_model, config.n_heads, config.d_head, config.d_ff
    fused = arrays.take(f"layers.{i}.fused_attn_ff_proj.weight", n * h + 2 * h + 2 * f, d).T
    q, k, v, up, gate = np.split(fused, np.cumsum([n * h, h, h, f]), axis=1)
    block = {
        "norm": arrays.take(f"layers.{i}.norm.gamma", d),
        "wq": q.reshape(d, n, h),
        "wk": k.reshape(d, 1, h),
        "wv": v.reshape(d, 1, h),
        "wo": arrays.take(f"layers.{i}.attn_out.weight", d, n * h).T.reshape(n, h, d),
        "w_gate": gate,
        "w_up": up,
        "w_down": arrays.take(f"layers.{i}.ff_out.2.weight", d, f).T,
    }
    if config.qk_norm != "none":  # stored without the offset that ours has
        q_scale, k_scale = (arrays.take(f"layers.{i}.{name}", h) - 1 for name in ("q_scale", "k_scale"))
        block |= {"q_norm": np.tile(q_scale, (n, 1)), "k_norm": k_scale[None]}
    return block
