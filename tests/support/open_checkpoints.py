"""Small open checkpoints as users find them: config.json, safetensors, tokenizer.json, and the files beside them."""

import json
import struct
from pathlib import Path

from support.cohere import ROWS, byte_level, oracle, small_cohere
from support.open_models import FAMILIES, transformers_model

IDS = dict(vocab_size=ROWS, bos_token_id=1, eos_token_id=[2, 5], pad_token_id=0)
NAMES = ("Cohere", *FAMILIES)
COMPANIONS = {
    "generation_config.json": '{"eos_token_id": [2, 5],\n "pad_token_id": 0, "temperature": 0.6}',
    "tokenizer_config.json": '{"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<BOS>"}',
    "special_tokens_map.json": '{"bos_token": "<BOS>"}',
    "chat_template.jinja": "{{ messages }}",
    "vocab.json": "{}",
    "LICENSE": "Apache",
    "NOTICE.txt": "whose",
}
CARD = "---\nlicense: apache-2.0\nlanguage: en\n---\nThe card.\n"


def small_model(family: str, **settings):
    """A model of transformers of one of NAMES."""
    if family == "Cohere":
        return small_cohere(**(IDS | {"num_key_value_heads": 2, "use_qk_norm": True} | settings))
    return transformers_model(family, **(IDS | settings))


def save(model, folder: Path, text: str, dtype: str = "float32", shard: str = "50GB") -> Path:
    """Save a model with a byte-level tokenizer and the files that published checkpoints have."""
    torch = oracle("torch")
    model.to(getattr(torch, dtype)).save_pretrained(folder, max_shard_size=shard)
    byte_level(text).save(str(folder / "tokenizer.json"))
    for name, content in COMPANIONS.items():
        (folder / name).write_text(content)
    (folder / "README.md").write_text(CARD)
    return folder


def stored_tensors(folder: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """Dtype, shape and bytes of every tensor of a checkpoint."""
    tensors = {}
    for path in sorted(folder.glob("*.safetensors")):
        content = path.read_bytes()
        n_header = struct.unpack("<Q", content[:8])[0]
        header = json.loads(content[8 : 8 + n_header])
        header.pop("__metadata__", None)
        for name, entry in header.items():
            first, end = (8 + n_header + at for at in entry["data_offsets"])
            tensors[name] = (entry["dtype"], tuple(entry["shape"]), content[first:end])
    return tensors
