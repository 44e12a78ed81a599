"""Train on gaps whose borders lie between characters, and fill gaps inside words with and without healing.

    python benchmarks/character_cuts.py --data bench/ --json docs/results/character_cuts.json

Two forks of the tiny base, each as the quickstart's: one of `ul2r_gaps`, and one of the same mixture in which half of
the chunks with one or three short gaps have all of these cut inside a token. Text before, in and after such a gap is
encoded anew, as a prompt's is. Gaps and measures are those of `healing.py`, with the bits per byte of the missing text.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import tyro
from healing import code_gaps, measure, prose_gaps

import upalm
from upalm import ul2r
from upalm.checkpoints.folder import load_model
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.data import sources
from upalm.data.tokenizer import Tokenizer
from upalm.data.tokens import encode
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.bootstrap import Estimate, mean, ratio
from upalm.evals.infilling import scores
from upalm.evals.infilling.held_out import cut_gaps
from upalm.files import write_atomically
from upalm.inference.config import Mode
from upalm.training import recipes
from upalm.training.config import Continue
from upalm.training.loop import fit
from upalm.training.optim import Adafactor, Schedule


@dataclass(frozen=True)
class Case:
    """Forks and gaps."""

    data: Path
    """Folder of the benchmark files: `humaneval_infilling/` and `nlp/lambada_openai.jsonl`."""
    json: Path
    """File for the figures."""
    work: Path = Path("runs/character_cuts")
    """Folder for the runs."""
    checkpoint: Path = upalm.PALM_TINY
    """Folder of the base, whose tokenizer is a file of its own."""
    text: str = sources.STDLIB
    """Text of the forks, of whose held-out part lines are measured."""
    n_steps: int = 220
    """Steps of each fork."""
    n_rows: int = 200
    """Rows of each kind of gap."""
    mode: Mode = "nlg"
    """Mode token of the prompts."""


# --- Training -------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class CharacterGaps(ul2r.Gaps):
    """Cut all gaps of a share of the chunks inside their first and last token."""

    share: float
    folder: str
    """Of a checkpoint with the tokenizer, which this denoiser needs to encode what it cuts."""

    def __call__(self, tokens: np.ndarray, rng: np.random.Generator, symbols: ul2r.Symbols) -> ul2r.Example:
        example = super().__call__(tokens, rng, symbols)
        if rng.random() >= self.share or np.isin(tokens, symbols.eos_id).any():
            return example
        cut = self._cut(example, rng, symbols)
        _, most_targets = self.lengths(len(tokens))
        return example if cut is None or len(cut.targets) > most_targets else cut

    def _cut(self, example: ul2r.Example, rng: np.random.Generator, symbols: ul2r.Symbols) -> ul2r.Example | None:
        """Move the borders of gaps into their tokens, and leave out as many tokens at the end as that adds.

        None where the text after the last gap has too few, or a character has several tokens.
        """
        tokenizer = load_tokenizer(self.folder)
        sentinels = list(symbols.sentinels[: self.n_spans])
        _, *spans = split_at(example.targets, sentinels)
        parts = [tokenizer.decode(part) for part in split_at(example.inputs, sentinels)]
        texts = [tokenizer.decode(span) for span in spans]
        for i, span in enumerate(spans):
            first, last = len(tokenizer.decode(span[:1])), len(tokenizer.decode(span[-1:]))
            begin = int(rng.integers(1, first)) if first > 1 else 0
            end = len(texts[i]) - (int(rng.integers(1, last)) if last > 1 else 0)
            if begin < end:
                parts[i], parts[i + 1] = parts[i] + texts[i][:begin], texts[i][end:] + parts[i + 1]
                texts[i] = texts[i][begin:end]
        if any("\ufffd" in text for text in (*parts, *texts)):
            return None
        inputs = join(map(tokenizer.encode, parts), [[], *([s] for s in sentinels)])
        targets = join(map(tokenizer.encode, texts), [[s] for s in sentinels])
        excess = len(inputs) + len(targets) - len(example.inputs) - len(example.targets)
        if not 0 <= excess < len(tokenizer.encode(parts[-1])):
            return None
        return ul2r.Example(np.array(inputs[: len(inputs) - excess], np.int32), np.array(targets, np.int32))


def split_at(ids: np.ndarray, sentinels: list[int]) -> list[list[int]]:
    """Split ids at sentinels, which are left out."""
    return [part[(i > 0) :].tolist() for i, part in enumerate(np.split(ids, np.flatnonzero(np.isin(ids, sentinels))))]


def join(pieces: Iterable[list[int]], before: list[list[int]]) -> list[int]:
    """Join pieces of ids, each with some ids before it."""
    return [i for ids, piece in zip(before, pieces, strict=False) for i in (*ids, *piece)]


@lru_cache
def load_tokenizer(folder: str) -> Tokenizer:
    return load_model(Path(folder)).tokenizer


def mixtures(folder: Path) -> dict[str, ul2r.Mixture]:
    """Return `ul2r_gaps`, and the same with gaps between characters, by name."""

    def cut(denoiser: ul2r.Denoiser) -> ul2r.Denoiser:
        if type(denoiser) is not ul2r.Gaps:
            return denoiser
        return CharacterGaps(**vars(denoiser), share=0.5, folder=str(folder))

    return {"between tokens": ul2r.UL2R_GAPS, "half between characters": tuple(map(cut, ul2r.UL2R_GAPS))}


def train(case: Case, name: str, mixture: ul2r.Mixture, corpus: sources.Corpus) -> upalm.LanguageModel:
    """Fork the base, as the quickstart does."""
    base, tokenizer, info = load_model(case.checkpoint)
    config = recipes.config("ul2r_tiny", "ul2r")
    config = replace(
        config,
        out=case.work / name.replace(" ", "_"),
        start=Continue(case.checkpoint),
        data=replace(config.data, source=case.text, mixture=mixture, seq_len=256, batch_size=8, joint_budget=True),
        optimizer=Adafactor(Schedule("cosine", 7e-3, 7e-5), decay=False),
        n_steps=case.n_steps,
        save_every=100,
        eval_every=case.n_steps,
    )
    tokens = (encode(tokenizer, documents) for documents in (corpus.train, corpus.validation))
    model = fit(config, base, tokenizer, *tokens, title=name)
    return upalm.LanguageModel(model, tokenizer, CheckpointInfo(inputs_eos=True, gaps_trained=True))


# --- Measures -------------------------------------------------------------------------------------


def pairs(ours: np.ndarray, reference: np.ndarray, n_bytes: np.ndarray | None = None) -> dict[str, dict]:
    """Estimate both and their difference: means, or sums over bytes."""

    def estimate(x: np.ndarray) -> Estimate:
        return mean(x) if n_bytes is None else ratio(x, n_bytes)

    named = {"reference": reference, "ours": ours, "difference": ours - reference}
    return {name: estimate(x)._asdict() for name, x in named.items()}


def main(case: Case) -> None:
    enable_compilation_cache()
    corpus = sources.load(case.text)
    reference, ours = (train(case, name, m, corpus) for name, m in mixtures(case.checkpoint).items())
    tokenizer = ours.tokenizer
    lines, words = cut_gaps(corpus.validation, tokenizer, 256, case.n_rows, inputs_eos=True)
    kinds = {
        "random spans": code_gaps(case.data, "random-span"),
        "inside words of prose": prose_gaps(case.data),
        "held-out lines": lines,
        "three held-out gaps": words,
    }
    figures: dict[str, dict[str, dict]] = {}
    for kind, rows in kinds.items():
        rows = scores.drop_too_long(ours.model, tokenizer, rows, case.mode, inputs_eos=True)[: case.n_rows]
        costs = [scores.score_spans(m.model, tokenizer, rows, case.mode, inputs_eos=True) for m in (ours, reference)]
        found = {"span_bits_per_byte": pairs(*(x.bits.bits for x in costs), costs[0].bits.n_bytes)}
        found["closing_nll"] = pairs(*(x.closing_nll for x in costs))
        if len(rows[0].spans) == 1:
            for heal in (False, True):
                fills = [measure(m, rows, case.mode, heal) for m in (ours, reference)]
                for name in ("start", "edit_sim", "closed"):
                    found[f"{name}, {'healed' if heal else 'plain'}"] = pairs(*(x[name] for x in fills))
        figures[kind] = {"n": len(rows), **found}
        print(kind, {name: f"{x['difference']['mean']:+.3f}" for name, x in found.items()}, flush=True)
        write_atomically(case.json, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Case, description=__doc__))
