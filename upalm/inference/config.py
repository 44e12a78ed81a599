"""GenerationConfig: how answers are generated."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from upalm.checks import check_choices, is_whole
from upalm.data.tokenizer import check_utf8
from upalm.inference.sampling import Sampler

Mode = Literal["none", "s2s", "nlu", "nlg"]
"""Mode token before a prompt (U-PaLM section 2.3): of the S, R or X denoiser, or none."""

Attention = Literal["prefix", "causal"]
"""Tokens that the tokens of a prompt attend to: the whole prompt, or only what comes before them."""

N_SEEDS = 1 << 32


@dataclass(frozen=True)
class GenerationConfig:
    """Settings of a generation, one for every call.

    Raises:
        ValueError: a value that the field does not take.
    """

    mode: Mode | Literal["auto"] = "auto"
    """Mode token before the prompt: none, s2s, nlu (short spans) or nlg (long spans). `auto` is nlg for a text with
    gaps and none for any other, whichever call it is for."""
    max_new_tokens: int | Sequence[int] = 64
    """Most tokens to add: one limit for every gap, or one limit per gap."""
    sampler: Sampler = Sampler()
    """How each token is drawn; greedily by default."""
    num_samples: int = 1
    """Answers to draw, of which the likeliest comes first; more than one need a temperature."""
    seed: int = 0
    """Seed of the draws. A sample depends on it, on the prompt and on its number alone, whatever the batch."""
    stop: Sequence[str] = ()
    """Strings that end a span. They are not part of it."""
    constrained: bool = True
    """Decode under the grammar, which gives every gap exactly one span and always ends. Without it the answer's format
    is the model's own, and `Infill.format_ok` tells whether it is right. Text without gaps has no format."""
    heal: bool = True
    """Under the grammar, take back the tokens at a gap's borders that a longer token may cross, and let the span write
    their bytes anew: those before the gap, and those after it where the text begins inside a word. The text around the
    gap stays as it is. A gap's limit rises by the number of tokens taken back, and `Infill.logprobs` are of all that a
    span writes."""
    attention: Attention = "prefix"
    """Prompt tokens see the whole prompt, or only what comes before them, as a causal base model was trained."""
    batch_size: int = 16
    """Prompts to decode at once."""

    def __post_init__(self):
        if isinstance(self.stop, str):  # a text is a sequence of texts, too
            raise ValueError(f"stop is the text {self.stop!r}, expected a sequence of texts: stop=({self.stop!r},).")
        for name in ("stop", "max_new_tokens"):  # lists are welcome; the config is hashable
            if isinstance(value := getattr(self, name), Sequence):
                object.__setattr__(self, name, tuple(value))
        check_choice("mode", self.mode, ("auto", *get_args(Mode)))
        check_choices(self)
        if not isinstance(self.sampler, Sampler):
            raise ValueError(f"sampler is {self.sampler!r}, expected a Sampler, such as Sampler(temperature=0.8).")
        limits = self.max_new_tokens
        for n in limits if isinstance(limits, tuple) else (limits,):
            check_at_least("max_new_tokens", n, 0)
        check_at_least("num_samples", self.num_samples, 1)
        if self.num_samples > 1 and self.sampler.temperature == 0:
            raise ValueError(
                f"num_samples is {self.num_samples} and the temperature 0, at which all samples are alike: set a "
                "temperature, such as 0.8, or ask for one sample."
            )
        check_at_least("batch_size", self.batch_size, 1)
        check_at_least("seed", self.seed, 0)
        if self.seed >= N_SEEDS:
            raise ValueError(f"seed is {self.seed}, expected less than 2**32: larger ones would wrap.")
        for word in self.stop:
            if not word:
                raise ValueError("a stop string is empty: every text has it.")
            check_utf8(word, "a stop string")

    def mode_for(self, has_gaps: bool) -> Mode:
        """The mode token that a prompt gets."""
        if self.mode == "auto":
            return "nlg" if has_gaps else "none"
        return self.mode


def check_choice(name: str, value: object, choice: Sequence[str]) -> None:
    """Refuse a value that is not one of a choice.

    Raises:
        ValueError: with the value and the choice.
    """
    if value not in choice:
        raise ValueError(f"{name} is {value!r}, expected one of {', '.join(choice)}.")


def check_at_least(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or less than the least one.

    Raises:
        ValueError: with the value and the least.
    """
    if not is_whole(value) or value < least:
        raise ValueError(f"{name} is {value!r}, expected a whole number of at least {least}.")
