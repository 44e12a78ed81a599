"""Ladders: checkpoints along the pretraining of one model, and what they and their continuations are measured on.

The recipes `scaling_tiny` and `scaling_open` train the continuations; `savings` compares the results.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from upalm._version import __version__
from upalm.checkpoints.folder import load_model, open_checkpoint
from upalm.checkpoints.lineage import Stage
from upalm.data.readers import Document
from upalm.data.sources import Check, TextSource, no_check
from upalm.data.tokenizer import Tokenizer
from upalm.evals.benchmark_files import parse_json
from upalm.evals.bootstrap import Estimate, ratio
from upalm.evals.infilling import gaps, scores
from upalm.evals.infilling.held_out import MODES, cut_gaps
from upalm.evals.savings import describe_checkpoint
from upalm.evals.scorer import PromptFormat, Scorer
from upalm.evals.suites import Suite, run_suite, save_results
from upalm.files import write_atomically
from upalm.inference.config import Attention
from upalm.model.config import ModelConfig
from upalm.model.palm import Decoder

_MAY_DIFFER = {
    *("seq_len", "rope_theta", "rope_factor", "rope_low_freq_factor", "rope_high_freq_factor"),
    *("rope_original_seq_len", "remat", "compute_dtype"),
}
"""Settings that stages of one model's pretraining may change: its longest row, and how it is computed."""


# --- Starts ---------------------------------------------------------------------------------------


class Start(NamedTuple):
    """A checkpoint along the pretraining of a model."""

    folder: Path
    n_tokens: int
    """Tokens that it was pretrained on."""
    config: ModelConfig
    tokenizer: Tokenizer

    @property
    def stages(self) -> list[Stage]:
        """Pretraining of the start as one stage."""
        return [Stage("causal", self.n_tokens, 0)]


def open_starts(given: Sequence[str], seq_len: int) -> list[Start]:
    """Open checkpoints of one model without reading their weights, in the order of their pretraining.

    Args:
        given: folders. One that does not say what it was trained on, as an import, with its pretraining tokens:
            `models/stage1:2e12`.
        seq_len: positions that rows need.

    Raises:
        ValueError: fewer than two, a folder that is no checkpoint, unknown or contradictory tokens, training on another
            objective than causal, rows that are too short, or checkpoints of different models, each by name.
    """
    if len(given) < 2:
        raise ValueError(
            f"starts: {len(given)} given, expected two or more checkpoints of one model, as a curve needs."
        )
    starts = sorted(map(_open_start, given), key=lambda start: start.n_tokens)
    for start in starts:
        if seq_len > start.config.seq_len:
            raise ValueError(
                f"rows of {seq_len} are longer than the {start.config.seq_len} of {start.folder}: give a shorter "
                "--seq-len, as long as all checkpoints allow."
            )
        _check_alike(starts[0], start)
    for a, b in pairwise(starts):
        if a.n_tokens == b.n_tokens:
            raise ValueError(
                f"{a.folder} and {b.folder} both have {a.n_tokens:,} pretraining tokens: give each checkpoint once, "
                "with its own."
            )
    return starts


def _open_start(given: str) -> Start:
    folder, stated = _split_start(given)
    config, tokenizer, info = open_checkpoint(folder)
    if info.gaps_trained or any(stage.mixture != "causal" for stage in info.stages or ()):
        mixtures = " -> ".join(stage.mixture for stage in info.stages or ()) or info.mixture or "gaps"
        raise ValueError(f"{folder} was trained on {mixtures}: expected a causal model, which UL2R was not used on.")
    n_tokens = sum(stage.n_tokens for stage in info.stages) if info.stages else stated
    if n_tokens is None:
        raise ValueError(
            f"{folder} does not say what it was pretrained on: give the number of its tokens, as in {folder}:2e12."
        )
    if stated is not None and stated != n_tokens:
        raise ValueError(f"{folder} was trained on {n_tokens:,} tokens, not {stated:,}: leave the number out.")
    if n_tokens < 1:
        raise ValueError(f"{folder} was trained on {n_tokens} tokens: expected a checkpoint after some pretraining.")
    return Start(folder, n_tokens, config, tokenizer)


def _split_start(given: str) -> tuple[Path, int | None]:
    """Split FOLDER:TOKENS; a folder whose own name has a colon stays whole."""
    folder, colon, tokens = given.rpartition(":")
    if not colon or Path(given).exists():
        return Path(given), None
    try:
        n_tokens = float(tokens)
    except ValueError:
        n_tokens = math.nan
    if not folder or not 1 <= n_tokens < 1e18:
        raise ValueError(f"start {given!r}: expected a folder, or FOLDER:TOKENS with a number such as 2e12.")
    return Path(folder), round(n_tokens)


def _check_alike(a: Start, b: Start) -> None:
    mine, other = asdict(a.config), asdict(b.config)
    differences = [
        f"{name} {mine[name]} and {other[name]}"
        for name in mine
        if name not in _MAY_DIFFER and mine[name] != other[name]
    ]
    if a.tokenizer.hash != b.tokenizer.hash:
        differences.append(f"tokenizers {a.tokenizer.hash} and {b.tokenizer.hash}")
    if differences:
        raise ValueError(
            f"{a.folder} and {b.folder} are not checkpoints of one model ({', '.join(differences)}): give those of one."
        )


# --- Measures -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measures:
    """Text and questions that every checkpoint of a ladder is measured on."""

    documents: Sequence[Document]
    """Held-out text, from `load_held_out`."""
    suite: Suite
    files: Path
    """Folder of the suite's files."""
    n_questions: int
    """First questions of each task."""
    n_rows: int
    """Held-out gaps, and excerpts."""
    seq_len: int
    """Longest row of gaps and excerpts."""

    def check_rows(self, tokenizer: Tokenizer) -> None:
        """Refuse rows that are too short for the gaps, and text without a place for one.

        Raises:
            ValueError: see `cut_gaps`.
        """
        cut_gaps(self.documents, tokenizer, self.seq_len, self.n_rows, inputs_eos=True)

    def check_folder(self, out: Path) -> None:
        """Record the measures in `out`, or refuse a folder whose results are of others or of another version.

        Raises:
            ValueError: what differs.
        """
        path, request = out / "measured_on.json", self._request()
        if not path.is_file():
            out.mkdir(parents=True, exist_ok=True)
            write_atomically(path, json.dumps(request) + "\n")
            return
        stored = parse_json(path.read_bytes(), str(path))
        stored = stored if isinstance(stored, dict) else {}
        names = sorted(name for name in stored.keys() | request.keys() if stored.get(name) != request.get(name))
        if names:
            changes = "; ".join(f"{name}: {stored.get(name)} there, {request.get(name)} here" for name in names)
            raise ValueError(f"the results in {out} were measured otherwise ({changes}): choose another --out.")

    def _request(self) -> dict[str, Any]:
        texts = hashlib.sha256()
        for document in self.documents:
            texts.update(f"{document.name}\0{document.text}\0".encode(errors="surrogatepass"))
        sizes = {"questions": self.n_questions, "rows": self.n_rows, "seq_len": self.seq_len}
        return {"upalm": __version__, "held_out": texts.hexdigest()[:16], "suite": self.suite.name} | sizes

    def evaluate(self, checkpoint: Path, place: Path, stages: Sequence[Stage] | None = None) -> Path:
        """Evaluate the suite in the format that suits the model, gaps, and text under both masks.

        What `place` has is not measured again.

        Args:
            checkpoint: its folder.
            place: folder of the results.
            stages: training that made it, if its folder does not tell.

        Returns:
            The results.json.

        Raises:
            ValueError: see `run_suite`.
        """
        results = place / "results.json"
        if results.is_file():
            return results
        model, tokenizer, info = load_model(checkpoint)
        trained_mask: Attention = "prefix" if info.gaps_trained else "causal"
        scorer = Scorer(model, tokenizer, PromptFormat(attention=trained_mask))
        suite = run_suite(scorer, self.suite, self.files, place, limit=self.n_questions)
        estimates = self._estimate_bits(model, tokenizer, info.inputs_eos)
        measures = {name: e._asdict() | {"lower_is_better": True} for name, e in estimates.items()}
        about = describe_checkpoint(checkpoint, model, scorer, stages)
        save_results(results, about | suite.to_json() | {"measures": measures})
        return results

    def _estimate_bits(self, model: Decoder, tokenizer: Tokenizer, inputs_eos: bool) -> dict[str, Estimate]:
        """Estimate bits per byte of gaps, and of the second halves of excerpts under either mask."""
        lines, _ = cut_gaps(self.documents, tokenizer, self.seq_len, self.n_rows, inputs_eos=True)
        by_mode = [scores.score_spans(model, tokenizer, lines, mode, inputs_eos).bits for mode in MODES]
        best = min(by_mode, key=lambda bits: bits.bits.sum())

        def fits(text: str) -> bool:
            return sum(len(tokenizer.encode(half)) for half in _split_in_half(text)) <= self.seq_len

        halves = map(_split_in_half, gaps.take_excerpts(self.documents, self.n_rows, fits))
        rows = [gaps.Gap((before, ""), (after,)) for before, after in halves]
        masks: tuple[Attention, ...] = ("causal", "prefix")
        continued = {mask: scores.score_left_only(model, tokenizer, rows, "none", mask) for mask in masks}
        return {
            "infill_bits_per_byte": ratio(*best),
            **{f"continue_{mask}_bits_per_byte": ratio(*bits) for mask, bits in continued.items()},
        }


def load_held_out(text: TextSource, check: Check = no_check) -> list[Document]:
    """Read the held-out documents of a text, without those that are also in its training text, word for word.

    Args:
        text: the source.
        check: see `TextSource.documents`.

    Raises:
        ValueError: see `TextSource.load`; or all are in the training text.
    """
    return text.load(check, keep_repeated=False).validation


def _split_in_half(text: str) -> tuple[str, str]:
    return text[: len(text) // 2], text[len(text) // 2 :]
