"""Adapter for lm-evaluation-harness: `python -m upalm.evals.harness --model upalm --model_args checkpoint=DIR ...`.

A thin layer over `evals.scorer`, so that both give the same numbers. It needs `pip install 'upalm[lm-eval]'`, and
neither torch nor transformers. In Python:
`lm_eval.simple_evaluate(model=UpalmLM("runs/x"), tasks=...)`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from lm_eval.__main__ import cli_evaluate
from lm_eval.api.instance import Instance
from lm_eval.api.model import LM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import normalize_gen_kwargs
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from upalm.checkpoints.folder import load_model
from upalm.distributed.runtime import enable_compilation_cache
from upalm.evals.scorer import Prompt, PromptFormat, Scorer
from upalm.inference.config import Attention, Mode

Split = Literal["separate", "joint"]
"""Way to encode a context and its continuation; see `UpalmLM`."""


@register_model("upalm")
class UpalmLM(LM):
    """A checkpoint under one prompt format, as a model of the harness.

    Args:
        checkpoint: folder of a run, of one of its checkpoints, or of weights.
        attention: mask of the context: `prefix`, bidirectional; or `causal`, for a base model.
        mode: mode token before the context: none, s2s, nlu or nlg.
        infill: the continuation is a span after `<extra_id_0>`, which is fed and not scored.
        split: `separate` encodes context and continuation each by itself, as UL2R trains; `joint` encodes both
            together and cuts where the context's own tokens end, as causal models are mostly evaluated.
        tokens_per_batch: approximate prompt positions per batch.
        batch_size, max_batch_size, device: passed by the harness, not used.

    Contexts that are too long lose their front before the mode token is added; `n_cut` counts them.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        attention: Attention = "prefix",
        mode: Mode = "none",
        infill: bool = False,
        split: Split = "separate",
        tokens_per_batch: int = 4096,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        if split not in ("separate", "joint"):
            raise ValueError(f"split is {split!r}, expected separate or joint.")
        model, tokenizer, info = load_model(checkpoint)
        prompt_format = PromptFormat(attention, mode, infill, info.inputs_eos)
        self._scorer = Scorer(model, tokenizer, prompt_format, tokens_per_batch=tokens_per_batch)
        self._split, self.n_cut = split, 0

    @property
    def tokenizer_name(self) -> str:
        """Everything that answers depend on: the harness keys its cache of requests by this."""
        return json.dumps({**self._scorer.fingerprint, "split": self._split}, sort_keys=True)

    def get_model_info(self) -> dict[str, Any]:
        """Return what the harness stores with its results."""
        return {**self._scorer.fingerprint, "split": self._split, "contexts_cut": self.n_cut}

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Accept only the harness's empty hook.

        Raises:
            ValueError: a cache of responses, which would mix the answers of models.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise ValueError(
                "the harness's use_cache keys answers by the request alone, and would give one model the answers of "
                "another: leave it out."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Score continuations: log-probability in nats, and whether the continuation is greedy.

        Continuations of one context share one prefill.
        """
        by_context: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = {}
        for i, request in enumerate(requests):
            context, target = self._encode_pair(*map(str, _get_arguments(request)))
            by_context.setdefault(context, []).append((i, target))
        targets = [[target for _, target in pairs] for pairs in by_context.values()]
        prompts = [self._fit_prompt(ids, max(map(len, some))) for ids, some in zip(by_context, targets, strict=True)]
        numbers = [[i for i, _ in pairs] for pairs in by_context.values()]
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for unit, likelihoods in self._scorer.rank_ids(prompts, targets):
            for i, x in zip(numbers[unit], likelihoods, strict=True):
                answers[i] = (x.log_prob, x.is_greedy)
        return answers

    def _encode_pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        encode = self._scorer.encode
        if self._split == "separate":
            ids, target = encode(context), encode(continuation)
        else:
            n = len(encode(context))
            whole = encode(context + continuation)
            ids, target = whole[:n], whole[n:]
        if not target:
            raise ValueError(
                f"the continuation {continuation!r} of {context[-60:]!r} has no tokens of its own: with split=separate "
                "the continuation would have some."
            )
        return ids, target

    def _fit_prompt(self, ids: Sequence[int], n_new: int) -> Prompt:
        prompt = self._scorer.fit_prompt(ids, n_new + 2 * self._scorer.prompt_format.infill)
        self.n_cut += prompt.n_cut > 0
        return prompt

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Score whole texts from left to right in the harness's windows, every token once, in nats.

        There is no prompt, so that the mask is causal whatever the prompt format.
        """
        size, bos_id = self._scorer.config.seq_len - 1, self._scorer.tokenizer.symbols.bos_id
        prompts, targets, owners = [], [], []
        for i, request in enumerate(requests):
            ids = list(self._scorer.encode(str(_get_arguments(request)[0])))
            windows = get_rolling_token_windows(ids, prefix_token=bos_id, max_seq_len=size, context_len=1)
            for n, (context, target) in enumerate(map(make_disjoint_window, windows)):
                prompts.append(context if n else context[1:])  # BOS, which every row gets
                targets.append([target])
                owners.append(i)
        totals = [0.0] * len(requests)
        for unit, [x] in self._scorer.rank_causal(prompts, targets):
            totals[owners[unit]] += x.log_prob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Generate greedy continuations, cut before the first stop string.

        Raises:
            ValueError: the options ask for sampling.
        """
        by_options: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            options = normalize_gen_kwargs(_get_arguments(request)[1], default_max_gen_toks=256)
            if options.get("do_sample") or (options.get("temperature") or 0) > 0:
                raise ValueError(f"generation with {options} samples; this adapter is greedy: set do_sample to false.")
            stop = tuple(dict.fromkeys(s for s in options.get("until", ()) if s))
            by_options.setdefault((int(options.get("max_gen_toks", 256)), stop), []).append(i)
        answers = [""] * len(requests)
        for (n_new, stop), indices in by_options.items():
            texts = [str(_get_arguments(requests[i])[0]) for i in indices]
            prompts = [self._fit_prompt(self._scorer.encode(text), n_new) for text in texts]
            for k, text in self._scorer.generate(prompts, n_new, stop):
                answers[indices[k]] = text
        return answers


def _get_arguments(request: Instance) -> tuple[Any, ...]:
    return tuple(request.args)


if __name__ == "__main__":
    enable_compilation_cache()
    cli_evaluate()
