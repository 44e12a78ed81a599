"""Fill a gap in transformers, without this package's model code, by a model that `upalm export-hf` wrote.

    python examples/infill_with_transformers.py EXPORT CHECKPOINT

Without folders a small model with random weights is made and exported first. What comes out is compared with
`LanguageModel.infill`. Needs: pip install '.[oracles]'
"""

import json
import sys
import tempfile
from pathlib import Path

import equinox as eqx
import jax
import torch
import transformers

from upalm.checkpoints.folder import export, load_model
from upalm.checkpoints.shipped import PALM_TINY
from upalm.data.hf_tokenizer import load_tokenizer
from upalm.inference.config import GenerationConfig
from upalm.inference.language_model import LanguageModel
from upalm.interop.hf_export import export_hf
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

TEXT = "def add(a, b):\n    <extra_id_0>\n    return c\n"
N_NEW = 16


@torch.no_grad()
def infill(model, prompt: list[int], n_new: int, eos_id: int) -> list[int]:
    """Greedy. The prompt sees all of itself, what is generated sees what came before."""
    ids, n_prompt = list(prompt), len(prompt)
    while len(ids) < n_prompt + n_new and ids[-1] != eos_id:
        visible = torch.ones(len(ids), len(ids), dtype=torch.bool).tril()
        visible[:n_prompt, :n_prompt] = True
        mask = torch.where(visible, 0.0, torch.finfo(torch.float32).min)[None, None]
        ids.append(int(model(torch.tensor([ids]), attention_mask=mask).logits[0, -1].argmax()))
    return ids[n_prompt:]


def main(exported: Path, checkpoint: Path) -> None:
    model = transformers.AutoModelForCausalLM.from_pretrained(exported, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    ours, our_tokenizer, info = load_model(checkpoint)
    symbols = our_tokenizer.symbols  # an import has them in symbols.json, and every model card names them

    before, after = (tokenizer(part, add_special_tokens=False)["input_ids"] for part in TEXT.split("<extra_id_0>"))
    mode = tokenizer("[NLG]", add_special_tokens=False)["input_ids"]
    end = [symbols.eos_id] if info.inputs_eos else []
    prompt = [symbols.bos_id, *mode, *before, symbols.sentinels[0], *after, *end]
    found = infill(model, prompt, N_NEW + 2, symbols.eos_id)

    config = GenerationConfig(mode="nlg", max_new_tokens=N_NEW, constrained=False)
    expected = LanguageModel(ours, our_tokenizer, info).infill(TEXT, config)
    spans = []
    for i in found[found[0] == symbols.sentinels[0] :]:
        if i == symbols.eos_id or i in symbols.sentinels:
            break
        spans.append(i)
    print(json.dumps({"transformers": our_tokenizer.decode(spans), "upalm": expected.spans[0]}, indent=1))
    assert our_tokenizer.decode(spans) == expected.spans[0]


def example(folder: Path) -> tuple[Path, Path]:
    tokenizer = load_tokenizer(PALM_TINY)
    config = ModelConfig(tokenizer.vocab_size, d_model=64, n_layers=2, n_heads=4, d_head=16, d_ff=128, norm="layernorm")
    model = Decoder(config, key=jax.random.key(4))
    model = eqx.tree_at(lambda m: m.embed, model, model.embed / 10)  # else it says the last token again
    export(folder / "ours", model, tokenizer, {})
    return export_hf(folder / "ours", folder / "exported").folder, folder / "ours"


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        main(*map(Path, sys.argv[1:3] if len(sys.argv) > 2 else example(Path(made))))
