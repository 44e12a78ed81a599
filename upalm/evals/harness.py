"""lm-evaluation-harness adapter: `python -m upalm.evals.harness --model upalm --model_args checkpoint=DIR ...`.

A thin skin over the three calls of `evals.answerer`, so that both give the same numbers. Needs `pip install
'upalm[lm-eval]'`, and neither torch nor transformers. In Python:
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
from upalm.inference.decoding import Attention

Split = Literal["separate", "joint"]


@register_model("upalm")
class UpalmLM(LM):
    """A checkpoint, asked in one form.

    Args:
        checkpoint: folder of a run, of one of its checkpoints, or of weights.
        attention: `prefix`, the context sees all of itself; or `causal`, for a base model.
        mode: mode token before the context: none, s2s, nlu or nlg.
        infill: ask for the continuation as a span after `<extra_id_0>`; the sentinel is fed, and not scored.
        split: `separate`, context and continuation are encoded each by itself, as UL2R trains; or `joint`, cut where
            the context's own tokens end, as causal models are mostly evaluated.
        tokens_a_batch: prompt positions of a batch, more or less.

    Contexts that are too long lose their front; the mode token is put on after that. How many did is in `n_cut`.
    """

    def __init__(
        self,
        checkpoint: str | Path,
        attention: Attention = "prefix",
        mode: str = "none",
        infill: bool = False,
        split: Split = "separate",
        tokens_a_batch: int = 4096,
        batch_size: Any = None,
        max_batch_size: Any = None,
        device: Any = None,
    ):
        super().__init__()
        if split not in ("separate", "joint"):
            raise ValueError(f"split is {split!r}, expected separate or joint.")
        model, tokenizer, info = load_model(checkpoint)
        form = PromptFormat(attention, mode, infill, info.inputs_eos)
        self._answerer = Scorer(model, tokenizer, form, tokens_a_batch=tokens_a_batch)
        self._split, self.n_cut = split, 0

    @property
    def tokenizer_name(self) -> str:
        """What answers depend on: the harness keys its cache of requests by this."""
        return json.dumps({**self._answerer.fingerprint, "split": self._split}, sort_keys=True)

    def get_model_info(self) -> dict[str, Any]:
        """Goes into the harness's results."""
        return {**self._answerer.fingerprint, "split": self._split, "contexts_cut": self.n_cut}

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Refused.

        Raises:
            ValueError: always but for the harness's own empty hook.
        """
        if getattr(cache_hook, "dbdict", None) is not None:
            raise ValueError(
                "the harness's use_cache keys answers by the request alone, and would give one model another's: leave "
                "it out."
            )
        super().set_cache_hook(cache_hook)

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Of continuations, and whether each is greedy. Those of one context are scored against one prefill of it."""
        by_context: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            by_context.setdefault(str(_arguments(request)[0]), []).append(i)
        units, numbers = [], []
        for context, some in by_context.items():
            pairs = [self._pair(context, str(_arguments(requests[i])[1])) for i in some]
            for ids in dict.fromkeys(context_ids for context_ids, _ in pairs):
                chosen = [(i, target) for i, (c, target) in zip(some, pairs, strict=True) if c == ids]
                longest = max(len(target) for _, target in chosen)
                units.append((self._fitted(ids, longest), [target for _, target in chosen]))
                numbers.append([i for i, _ in chosen])
        found: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for unit, likelihoods in self._answerer.rank_ids([p for p, _ in units], [t for _, t in units]):
            for i, x in zip(numbers[unit], likelihoods, strict=True):
                found[i] = (x.log_prob, x.is_greedy)
        return found

    def _pair(self, context: str, continuation: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
        encode = self._answerer.encode
        if self._split == "separate":
            ids, target = encode(context), encode(continuation)
        else:
            n = len(encode(context))
            whole = encode(context + continuation)
            ids, target = whole[:n], whole[n:]
        if not target:
            raise ValueError(
                f"the continuation {continuation!r} of {context[-60:]!r} has no tokens of its own: with split=separate "
                "it would."
            )
        return ids, target

    def _fitted(self, ids: Sequence[int], n_new: int) -> Prompt:
        prompt = self._answerer.fitted(ids, n_new + 2 * self._answerer.form.infill)
        self.n_cut += prompt.n_cut > 0
        return prompt

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Of whole texts, left to right, in the harness's own windows: every token once.

        There is no prompt, so that this is a causal number whatever the form.
        """
        size, bos_id = self._answerer.config.seq_len - 1, self._answerer.tokenizer.symbols.bos_id
        prompts, targets, owners = [], [], []
        for i, request in enumerate(requests):
            ids = list(self._answerer.encode(str(_arguments(request)[0])))
            windows = get_rolling_token_windows(ids, prefix_token=bos_id, max_seq_len=size, context_len=1)
            for n, (context, target) in enumerate(map(make_disjoint_window, windows)):
                prompts.append(context if n else context[1:])  # BOS, which every row gets
                targets.append([target])
                owners.append(i)
        totals = [0.0] * len(requests)
        for unit, [x] in self._answerer.rank_plain(prompts, targets):
            totals[owners[unit]] += x.log_prob
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before the first of their stop strings.

        Raises:
            ValueError: sampling is asked for.
        """
        by_options: dict[tuple[int, tuple[str, ...]], list[int]] = {}
        for i, request in enumerate(requests):
            options = normalize_gen_kwargs(_arguments(request)[1], default_max_gen_toks=256)
            if options.get("do_sample") or (options.get("temperature") or 0) > 0:
                raise ValueError(f"generation with {options} samples; this adapter is greedy: set do_sample to false.")
            stop = tuple(dict.fromkeys(s for s in options.get("until", ()) if s))
            by_options.setdefault((int(options.get("max_gen_toks", 256)), stop), []).append(i)
        found = [""] * len(requests)
        for (n_new, stop), some in by_options.items():
            prompts = [self._fitted(self._answerer.encode(str(_arguments(requests[i])[0])), n_new) for i in some]
            for k, text in self._answerer.generate(prompts, n_new, stop):
                found[some[k]] = text
        return found


def _arguments(request: Instance) -> tuple[Any, ...]:
    return tuple(request.args)


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    enable_compilation_cache()
    cli_evaluate()
