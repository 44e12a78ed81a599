"""`upalm import-hf`, `upalm import-palm` and `upalm export-hf`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro
from etils import epy

from upalm.cli import options

with epy.lazy_imports():  # once the options are read: they import JAX
    from upalm.interop import hf_export, hf_import, palm_rlhf
    from upalm.training import progress


@dataclass(frozen=True)
class ImportHf:
    """Convert a Hugging Face checkpoint into one of upalm.

    Architectures: Llama, Mistral, Qwen 2 and 3, OLMo 2, Gemma, Cohere.
    """

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """A folder with config.json, safetensors and tokenizer.json; or a name on the Hugging Face hub."""
    out: options.Out
    """Folder to write."""
    norm: Literal["keep", "rms"] = "keep"
    """`rms` folds Cohere's LayerNorm into RMS norm, exactly but for rounding. Such a model cannot be exported."""
    sentinels: Literal["auto", "named", "reserved", "reserved-last", "unused-rows", "subwords", "levanter"] = "auto"
    """Ids that serve as sentinels: the vocabulary's own <extra_id_i>, its first or last 100 reserved tokens, rows of
    the table without a subword, its last subwords, or Levanter's choice. `auto` is the first that there are 100 of."""

    def __call__(self) -> None:
        with progress.Bar("import", 1) as bar:
            found = hf_import.import_hf(
                self.source, self.out, norm=self.norm, sentinels=self.sentinels, progress=bar.set_total
            )
        _report(found)


@dataclass(frozen=True)
class ImportPalm:
    """Convert a PaLM-rlhf-pytorch file into a checkpoint.

    Needs torch.
    """

    source: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """The state dict."""
    out: options.Out
    """Folder to write."""
    tokenizer: Path
    """Folder with the model's tokenizer.json (GPT-NeoX's, for the published ones)."""
    xpos_scale_base: int = 512
    """The class's rotary_xpos_scale_base; 0 for plain rotary embeddings."""
    seq_len: int = 2048
    """Longest row the model is meant for."""
    eos_id: int = 0
    """Token that begins and ends texts."""

    def __call__(self) -> None:
        found = palm_rlhf.import_palm(
            self.source,
            self.out,
            tokenizer=self.tokenizer,
            xpos_scale_base=self.xpos_scale_base,
            seq_len=self.seq_len,
            eos_id=self.eos_id,
        )
        _report(found)


@dataclass(frozen=True)
class ExportHf:
    """Convert a checkpoint into one of transformers.

    It goes out in the architecture that it came from, or that its options are.
    """

    checkpoint: options.Checkpoint
    """Folder of a run, or of weights."""
    out: options.Out
    """Folder to write."""
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    """Data type of the weights; `keep` is what the checkpoint has, float32 for a run."""

    def __call__(self) -> None:
        with progress.Bar("export", 1) as bar:
            found = hf_export.export_hf(self.checkpoint, self.out, dtype=self.dtype, progress=bar.set_total)
        print(f"{found.folder}: {found.n_bytes / 1e6:,.1f} MB of {found.dtype}, as {found.architecture}")


def _report(found: "hf_import.Imported") -> None:
    config, tokenizer = found.config, found.tokenizer
    print(f"{found.folder}: {config.n_params / 1e6:,.2f}M parameters, weights {found.dtype}")
    print(f"rows of up to {config.seq_len} tokens: {found.longest_row_is}")
    print(f"{tokenizer.vocab_size} subwords, BOS {tokenizer.symbols.bos_id}, EOS {tokenizer.symbols.eos_id}")
    print(f"sentinels: {tokenizer.sentinels_are}")
    print("mode tokens: " + ", ".join(f"{name} {list(ids)}" for name, ids in tokenizer.symbols.modes.items()))
    if found.ignored:
        print(f"left out {len(found.ignored)} arrays that are computed, not learnt: {', '.join(found.ignored[:3])} ...")
