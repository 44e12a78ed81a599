"""`upalm import-hf`, `upalm import-palm` and `upalm export-hf`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from upalm.interop import cohere, hf_export, hf_import
from upalm.interop.palm_rlhf import import_palm
from upalm.training.progress import Bar


@dataclass(frozen=True)
class ImportHf:
    """Read a Cohere-architecture checkpoint (Command-R, Aya) into a folder that `upalm` opens."""

    source: tyro.conf.Positional[str]
    """A folder with config.json, safetensors and tokenizer.json; or a name on the Hugging Face hub."""
    dest: tyro.conf.Positional[Path]
    """Folder to make."""
    norm: Literal["layernorm", "rms"] = "layernorm"
    """`rms` folds LayerNorm into RMS norm, exactly but for rounding; such a model cannot be exported."""

    def __call__(self) -> None:
        with Bar("import", 1) as bar:
            found = hf_import.import_hf(self.source, self.dest, norm=self.norm, progress=bar.set_total)
        _report(found)


@dataclass(frozen=True)
class ImportPalm:
    """Read a .pt file of PaLM-rlhf-pytorch's `PaLM` into a folder that `upalm` opens. Needs torch."""

    source: tyro.conf.Positional[Path]
    """The state dict."""
    dest: tyro.conf.Positional[Path]
    """Folder to make."""
    tokenizer: Path
    """Folder with the model's tokenizer.json (GPT-NeoX's, for the published ones)."""
    xpos_scale_base: int = 512
    """The class's rotary_xpos_scale_base; 0 for plain rotary embeddings."""
    seq_len: int = 2048
    """Longest row the model is meant for."""
    eos_id: int = 0
    """Token that begins and ends texts."""

    def __call__(self) -> None:
        options = {"xpos_scale_base": self.xpos_scale_base, "seq_len": self.seq_len, "eos_id": self.eos_id}
        _report(import_palm(self.source, self.dest, tokenizer=self.tokenizer, **options))


@dataclass(frozen=True)
class ExportHf:
    """Write a checkpoint as transformers, and what serves its Cohere architecture, reads it."""

    checkpoint: tyro.conf.Positional[Path]
    """Folder of a run, or of weights."""
    dest: tyro.conf.Positional[Path]
    """Folder to make."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Of the weights; `keep` is what the checkpoint has, float32 for a run."""

    def __call__(self) -> None:
        with Bar("export", 1) as bar:
            found = hf_export.export_hf(self.checkpoint, self.dest, dtype=self.dtype, progress=bar.set_total)
        print(f"{found.folder}: {found.n_bytes / 1e6:,.1f} MB of {found.dtype}, as {cohere.ARCHITECTURE}")


def _report(found: hf_import.Imported) -> None:
    config, tokenizer = found.config, found.tokenizer
    print(f"{found.folder}: {config.n_params / 1e6:,.2f}M parameters, weights {found.dtype}")
    print(f"{tokenizer.vocab_size} subwords, BOS {tokenizer.symbols.bos_id}, EOS {tokenizer.symbols.eos_id}")
    print(f"sentinels: {tokenizer.sentinels_are}")
    print("mode tokens: " + ", ".join(f"{name} {list(ids)}" for name, ids in tokenizer.symbols.modes.items()))
    if found.ignored:
        print(f"left out {len(found.ignored)} arrays that are computed, not learnt: {', '.join(found.ignored[:3])} ...")


COMMANDS = {"import-hf": ImportHf, "import-palm": ImportPalm, "export-hf": ExportHf}


def main(words: list[str]) -> None:
    """Run one of `COMMANDS`."""
    tyro.cli(COMMANDS[words[0]], prog=f"upalm {words[0]}", args=words[1:])()
