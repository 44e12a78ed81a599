"""Scorer: a model, its tokenizer and a prompt format, with the calls that every evaluation is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from typing import Any, NamedTuple

import jax

from upalm.checkpoints.arrays import checksums, to_arrays
from upalm.data.tokenizer import Tokenizer
from upalm.evals.task import RowsTooShort
from upalm.inference.config import Attention, GenerationConfig, Mode
from upalm.inference.decoding import DecodingModel, Ids, bucket
from upalm.inference.generation import complete
from upalm.inference.prompts import prompt_ids
from upalm.inference.scoring import Likelihood, rank
from upalm.model.palm import Decoder
from upalm.spelling import suggest
from upalm.ul2r.symbols import MODES

MAX_GENERATED_ROWS = 64


@dataclass(frozen=True)
class PromptFormat:
    """Form of a prompt (U-PaLM section 4.2); the paper's default has no mode token and no sentinel."""

    attention: Attention = "prefix"
    """Mask of the prompt: `prefix`, bidirectional; or `causal`, as a causal base was trained."""
    mode: Mode = "none"
    """Mode token at the front: none, s2s, nlu or nlg."""
    infill: bool = False
    """End the prompt with `<extra_id_0>`, so that the answer is a span."""
    inputs_eos: bool = False
    """EOS after `<extra_id_0>`, as in the checkpoint's training (`CheckpointInfo.inputs_eos`)."""

    def __post_init__(self):
        for name, known in (("attention", ("prefix", "causal")), ("mode", ("none", *MODES))):
            if (value := getattr(self, name)) not in known:
                raise ValueError(f"{name} is {value!r}: {suggest(value, known)}")

    def identity(self) -> dict[str, Any]:
        """Return the fields that decide answers; `inputs_eos` only where EOS comes."""
        fields = asdict(self)
        if not (self.infill and self.inputs_eos):
            del fields["inputs_eos"]
        return fields


class Prompt(NamedTuple):
    """Prompt ids that fit the model's rows, and what was removed to make them fit."""

    ids: tuple[int, ...]
    """Token ids without BOS."""
    n_dropped: int = 0
    """Whole exemplars left out."""
    n_cut: int = 0
    """Tokens cut off at the front, because the question alone was too long."""


class Scorer:
    """A model and its tokenizer under one prompt format.

    Every call takes all requests at once and yields (index, answer) as answers come, sorted by length so that few
    programs are compiled. `fingerprint` identifies weights, tokenizer and prompt format.
    """

    def __init__(
        self,
        model: Decoder,
        tokenizer: Tokenizer,
        prompt_format: PromptFormat = PromptFormat(),
        *,
        tokens_per_batch: int = 4096,
    ):
        self.tokenizer, self.prompt_format, self.config = tokenizer, prompt_format, model.config
        self._model, self._tokens_per_batch = DecodingModel.of(model), tokens_per_batch
        bos_id = tokenizer.symbols.bos_id
        self._rank = partial(rank, self._model, bos_id=bos_id, tokens_per_batch=tokens_per_batch)
        weights = {name: int(x) for name, x in jax.device_get(checksums(to_arrays(model))).items()}
        total = sum((i + 1) * weights[name] for i, name in enumerate(sorted(weights))) % (1 << 64)
        identity = {"weights": f"{total:016x}", "tokenizer": tokenizer.hash}
        self.fingerprint: dict[str, Any] = identity | prompt_format.identity()
        empty = prompt_ids(tokenizer, ("", ""), prompt_format.mode, prompt_format.inputs_eos)  # mode, <extra_id_0>, EOS
        n_mode = len(tokenizer.symbols.modes[prompt_format.mode]) if prompt_format.mode != "none" else 0
        self._front, self._end = empty[:n_mode], empty[n_mode:] if prompt_format.infill else []
        self.encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(tokenizer.encode(text)))

    def build_prompt(self, preamble: str, shots: Sequence[str], question: str, n_new: int) -> Prompt:
        """Encode a prompt that leaves room for `n_new` tokens.

        Exemplars are left out from the first on, then the question is cut at its front. Mode token and sentinel stay.

        Raises:
            RowsTooShort: the new tokens alone fill the row.
        """
        room, n_dropped, ids = self._room(n_new), 0, []
        for n_dropped in range(len(shots) + 1):
            ids = self.tokenizer.encode(preamble + "".join(shots[n_dropped:]) + question)
            if len(ids) <= room:
                break
        return self.fit_prompt(ids, n_new)._replace(n_dropped=n_dropped)

    def fit_prompt(self, ids: Sequence[int], n_new: int) -> Prompt:
        """Cut ids at the front to leave room for `n_new` tokens, then add mode token and sentinel."""
        n_cut = max(0, len(ids) - self._room(n_new))
        return Prompt((*self._front, *ids[n_cut:], *self._end), 0, n_cut)

    def _room(self, n_new: int) -> int:
        room = self.config.seq_len - 1 - n_new - len(self._front) - len(self._end)
        if room < 1:
            raise RowsTooShort(f"answers of {n_new} tokens leave no room for a question in {self.config.seq_len}.")
        return room

    def count_new(self, answer: str | int) -> int:
        """Count the positions that an answer needs: a text, or a number of generated tokens."""
        n = answer if isinstance(answer, int) else len(self.encode(answer))
        return n + 2 * self.prompt_format.infill

    def rank(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """Score the choices of each prompt. Every choice is encoded by itself.

        In the infilling format `<extra_id_0>` is fed before a choice, and not counted.
        """
        return self.rank_ids(prompts, [[self.encode(choice) for choice in group] for group in choices])

    def rank_ids(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[Ids]]
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """Score choices that are token ids already."""
        given = self.tokenizer.symbols.sentinels[:1] if self.prompt_format.infill else ()
        ids = [[(*given, *choice) for choice in group] for group in choices]
        attention = self.prompt_format.attention
        return self._rank([prompt.ids for prompt in prompts], ids, attention=attention, n_given=len(given))

    def rank_causal(
        self, prompts: Sequence[Ids], choices: Sequence[Sequence[Ids]]
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """Score as a causal language model does: no prompt format, and a causal mask."""
        return self._rank(prompts, choices, attention="causal")

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        """Decode greedy continuations without the stop string that ends them; in the infilling format, spans."""
        by_length: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_length.setdefault(bucket(len(prompt.ids)), []).append(i)
        for length, indices in sorted(by_length.items()):
            n_rows = max(1, min(MAX_GENERATED_ROWS, self._tokens_per_batch // length))
            for first in range(0, len(indices), n_rows):
                batch = indices[first : first + n_rows]
                attention, in_gap = self.prompt_format.attention, self.prompt_format.infill
                config = GenerationConfig(
                    max_new_tokens=max_new_tokens, stop=stop, attention=attention, batch_size=n_rows
                )
                ids = [prompts[i].ids for i in batch]
                completions = complete(self._model, self.tokenizer, ids, config, in_gap=in_gap, n_positions=length)
                yield from ((i, completion.text) for i, completion in zip(batch, completions, strict=True))
