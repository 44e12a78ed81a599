"""LanguageModel: a checkpoint opened for use. It fills gaps, continues prompts, streams and scores."""

import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

from jax.sharding import Mesh

from upalm.checkpoints.folder import load_model
from upalm.checkpoints.lineage import CheckpointInfo
from upalm.checkpoints.shipped import UPALM_TINY
from upalm.data.tokenizer import Tokenizer, check_utf8
from upalm.inference import generation, scoring
from upalm.inference.config import Attention, GenerationConfig, Mode, check_choice
from upalm.inference.decoding import DecodingModel
from upalm.inference.generation import Continuation, Infill, Piece
from upalm.inference.prompts import has_gaps, join_parts, prompt_ids, span_ids, split_gaps
from upalm.inference.scoring import Score
from upalm.model.palm import Decoder

Text = str | Sequence[str]
"""Text with gaps `<extra_id_0>`, `<extra_id_1>`, ...; or the parts between which the gaps are."""

NEVER_SAW_GAPS = (
    "this model was never trained on gaps (its mixture has no sentinels), so it does not know that a sentinel is to be "
    "replaced. Continue it with UL2R first: `upalm run quickstart` does so with the shipped base."
)


def load(folder: str | Path = UPALM_TINY, mesh: Mesh | None = None) -> "LanguageModel":
    """Open any checkpoint folder: a run (RUN, or RUN/steps/500), an import or an export.

    Args:
        folder: by default, the model that the package ships, which fills gaps.
        mesh: devices to split the model over.

    Raises:
        ValueError: missing, truncated or mismatching parts, each named.
    """
    return LanguageModel(*load_model(folder, mesh))


@dataclass(frozen=True, eq=False)
class LanguageModel:
    """A model with its tokenizer and its history.

    >>> import upalm
    >>> model = upalm.load()
    >>> filled = model.infill("import <extra_id_0>", upalm.GenerationConfig(max_new_tokens=4))
    >>> filled.text == "import " + filled.spans[0]
    True
    """

    model: Decoder
    tokenizer: Tokenizer
    info: CheckpointInfo = CheckpointInfo()
    """Training history of the model."""

    @cached_property
    def decoding(self) -> DecodingModel:
        """The model prepared for generation, made at the first call that generates."""
        return DecodingModel.of(self.model)

    def infill(self, text: Text, config: GenerationConfig = GenerationConfig()) -> Infill:
        """Fill the gaps of a text. See `generation.infill`."""
        return self.infill_batch([text], config)[0]

    def infill_batch(self, texts: Sequence[Text], config: GenerationConfig = GenerationConfig()) -> list[Infill]:
        """Fill the gaps of many texts."""
        warn_of_gaps(self.info, texts)
        inputs_eos = self.info.inputs_eos
        return generation.infill_batch(self.decoding, self.tokenizer, texts, config, inputs_eos=inputs_eos)

    def generate(self, text: Text, config: GenerationConfig = GenerationConfig()) -> Continuation:
        """Continue a prompt. See `generation.generate`."""
        return self.generate_batch([text], config)[0]

    def generate_batch(
        self, texts: Sequence[Text], config: GenerationConfig = GenerationConfig()
    ) -> list[Continuation]:
        """Continue many prompts."""
        warn_of_gaps(self.info, texts)
        inputs_eos = self.info.inputs_eos
        return generation.generate_batch(self.decoding, self.tokenizer, texts, config, inputs_eos=inputs_eos)

    def stream(self, text: Text, config: GenerationConfig = GenerationConfig()) -> Iterator[Piece]:
        """Yield an answer piece by piece: the spans of a text with gaps, or a continuation."""
        warn_of_gaps(self.info, [text])
        return generation.stream(self.decoding, self.tokenizer, text, config, inputs_eos=self.info.inputs_eos)

    def score(self, prompt: Text, target: Text, mode: Mode = "none", attention: Attention = "prefix") -> Score:
        """Score a target after a prompt. See `score_batch`."""
        return self.score_batch([(prompt, target)], mode, attention)[0]

    def score_batch(
        self, pairs: Sequence[tuple[Text, Text]], mode: Mode = "none", attention: Attention = "prefix"
    ) -> list[Score]:
        """Compute the log-probability of every token of targets, teacher-forced.

        Args:
            pairs: prompts with their targets. A target that is a text follows its prompt, which has no gaps and may be
                empty; a target that is a list of spans fills the gaps of its prompt, with sentinels and EOS scored too.
            mode: mode token before the prompts.
            attention: what a prompt sees.

        Raises:
            ValueError: an empty target, spans that are not one per gap, a text for a prompt with gaps, or a pair longer
                than the model's rows.
        """
        examples = [(self._prompt_ids(prompt, mode), self._target_ids(prompt, target)) for prompt, target in pairs]
        bos_id = self.tokenizer.symbols.bos_id
        return scoring.score(self.model, examples, attention=attention, bos_id=bos_id)

    def _prompt_ids(self, prompt: Text, mode: Mode) -> list[int]:
        if prompt == "":  # only the mode token, if any
            check_choice("mode", mode, get_args(Mode))
            return join_parts(self.tokenizer, [], mode, self.info.inputs_eos)
        return prompt_ids(self.tokenizer, prompt, mode, self.info.inputs_eos)

    def _target_ids(self, prompt: Text, target: Text) -> list[int]:
        if isinstance(target, str):
            if prompt != "" and (n_gaps := len(split_gaps(prompt)) - 1):
                raise ValueError(
                    f"the target is the text {target!r:.80} and its prompt has {n_gaps} gaps: expected a list of "
                    "spans, one per gap."
                )
            check_utf8(target, "the target")
            return self.tokenizer.encode(target)
        if len(target) != (n_gaps := len(split_gaps(prompt)) - 1):
            raise ValueError(f"{len(target)} spans for {n_gaps} gaps: expected one span per gap.")
        return span_ids(self.tokenizer, target)


def warn_of_gaps(info: CheckpointInfo, texts: Sequence[Text]) -> None:
    """Warn if a text has gaps and the model never saw one. The warning names the line that called this module."""
    if info.gaps_trained is False and any(map(has_gaps, texts)):
        warnings.warn(NEVER_SAW_GAPS, stacklevel=_level_outside())


def _level_outside() -> int:
    """Count the frames from the caller of this function to the first one outside of this module."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__") == __name__:
        frame, level = frame.f_back, level + 1
    return level
