"""`Scorer`: a model asked in one form. The three calls that every evaluation, ours or another's, is made of."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import jax

from upalm.checkpoints.arrays import checksums, to_arrays
from upalm.data.tokenizer import Tokenizer
from upalm.evals.task import TooShort
from upalm.inference.decoding import Attention, DecodingModel, Ids, bucket
from upalm.inference.generation import complete
from upalm.inference.prompts import Mode, prompt_ids
from upalm.inference.scoring import Likelihood, rank
from upalm.model.palm import Decoder


@dataclass(frozen=True)
class PromptFormat:
    """How a model is asked (U-PaLM section 4.2); by default as the paper does, without mode token and sentinel."""

    attention: Attention = "prefix"
    """What the prompt sees: all of itself, or, as a causal base was trained, what came before."""
    mode: Mode = "none"
    """Mode token at the front: none, s2s, nlu or nlg."""
    infill: bool = False
    """End the prompt with `<extra_id_0>`, so that the answer is a span."""
    inputs_eos: bool = False
    """EOS after `<extra_id_0>`, as the checkpoint's training had it (`CheckpointInfo.inputs_eos`)."""

    def identity(self) -> dict[str, Any]:
        """What decides answers: EOS only where it comes."""
        fields = asdict(self)
        if not (self.infill and self.inputs_eos):
            del fields["inputs_eos"]
        return fields


class Prompt(NamedTuple):
    """Ids that fit, and what was lost so that they do."""

    ids: tuple[int, ...]
    """Without BOS."""
    n_dropped: int = 0
    """Whole exemplars left out."""
    n_cut: int = 0
    """Tokens cut off at the front, because the question alone was too long."""


class Scorer:
    """A model and its tokenizer, asked in one form.

    Every call takes what is to be asked all at once and gives answers as they come, (number, answer), in an order of
    its own: by length, so that few programs are compiled. `fingerprint` tells whose answers they are: the weights', the
    tokenizer's and the form's.
    """

    def __init__(
        self, model: Decoder, tokenizer: Tokenizer, form: PromptFormat = PromptFormat(), *, tokens_a_batch: int = 4096
    ):
        self.tokenizer, self.form, self.config = tokenizer, form, model.config
        self._tokens_a_batch = tokens_a_batch
        self._model = DecodingModel.of(model)
        weights = {name: int(x) for name, x in jax.device_get(checksums(to_arrays(model))).items()}
        total = sum((i + 1) * weights[name] for i, name in enumerate(sorted(weights))) % (1 << 64)
        self.fingerprint: dict[str, Any] = {"weights": f"{total:016x}", "tokenizer": tokenizer.hash, **form.identity()}
        around = prompt_ids(tokenizer, ("", ""), form.mode, form.inputs_eos)  # mode, <extra_id_0>, EOS if trained so
        n_mode = len(tokenizer.symbols.modes[form.mode]) if form.mode != "none" else 0
        self._front, self._end = around[:n_mode], around[n_mode:] if form.infill else []
        self.encode = lru_cache(maxsize=1 << 16)(lambda text: tuple(tokenizer.encode(text)))

    def prompt(self, preamble: str, shots: Sequence[str], question: str, n_new: int) -> Prompt:
        """Text as ids that leave room for `n_new` more. The first exemplars go first; mode token and sentinel stay.

        Raises:
            TooShort: the new tokens alone take the whole row.
        """
        room, n_dropped, ids = self._room(n_new), 0, []
        for n_dropped in range(len(shots) + 1):
            ids = self.tokenizer.encode(preamble + "".join(shots[n_dropped:]) + question)
            if len(ids) <= room:
                break
        return self.fitted(ids, n_new)._replace(n_dropped=n_dropped)

    def fitted(self, ids: Sequence[int], n_new: int) -> Prompt:
        """Ids as a prompt: cut at the front to leave room for `n_new` more, then put into the form."""
        n_cut = max(0, len(ids) - self._room(n_new))
        return Prompt((*self._front, *ids[n_cut:], *self._end), 0, n_cut)

    def _room(self, n_new: int) -> int:
        room = self.config.seq_len - 1 - n_new - len(self._front) - len(self._end)
        if room < 1:
            raise TooShort(f"answers of {n_new} tokens leave no room for a question in {self.config.seq_len}.")
        return room

    def n_new(self, answer: str | int) -> int:
        """Room that an answer needs: a text, or so many generated tokens."""
        n = answer if isinstance(answer, int) else len(self.encode(answer))
        return n + 2 * self.form.infill

    def rank(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[str]]
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """Likelihoods of the choices of each prompt; each choice is encoded by itself.

        In the infilling form `<extra_id_0>` is fed before a choice, and not counted.
        """
        return self.rank_ids(prompts, [[self.encode(choice) for choice in some] for some in choices])

    def rank_ids(
        self, prompts: Sequence[Prompt], choices: Sequence[Sequence[Ids]]
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """`rank` of choices that are ids already."""
        given = self.tokenizer.symbols.sentinels[:1] if self.form.infill else ()
        ids = [[(*given, *choice) for choice in some] for some in choices]
        return self._rank([prompt.ids for prompt in prompts], ids, self.form.attention, len(given))

    def rank_plain(
        self, prompts: Sequence[Ids], choices: Sequence[Sequence[Ids]]
    ) -> Iterator[tuple[int, list[Likelihood]]]:
        """Likelihoods as of a causal language model: no form, and prompts that see only what came before."""
        return self._rank(prompts, choices, "causal", 0)

    def _rank(self, prompts: Sequence[Ids], choices: Sequence[Sequence[Ids]], attention: Attention, n_given: int):
        bos_id = self.tokenizer.symbols.bos_id
        options = {"n_given": n_given, "tokens_a_batch": self._tokens_a_batch}
        return rank(self._model, prompts, choices, attention=attention, bos_id=bos_id, **options)

    def generate(
        self, prompts: Sequence[Prompt], max_new_tokens: int, stop: Sequence[str]
    ) -> Iterator[tuple[int, str]]:
        """Greedy continuations without the stop string that ends them; in the infilling form, greedy spans."""
        by_length: dict[int, list[int]] = {}
        for i, prompt in enumerate(prompts):
            by_length.setdefault(bucket(len(prompt.ids)), []).append(i)
        for length, numbers in sorted(by_length.items()):
            n_rows = max(1, min(64, self._tokens_a_batch // length))
            for at in range(0, len(numbers), n_rows):
                chosen = numbers[at : at + n_rows]
                found = complete(
                    *(self._model, self.tokenizer, [prompts[i].ids for i in chosen]),
                    max_new_tokens=max_new_tokens,
                    in_gap=self.form.infill,
                    stop=stop,
                    attention=self.form.attention,
                    batch_size=n_rows,
                    n_positions=length,
                )
                yield from ((i, answer.text) for i, answer in zip(chosen, found, strict=True))
