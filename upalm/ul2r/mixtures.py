"""UL2R: the denoisers of U-PaLM, their mixture, and the decoder rows they make. NumPy only.

A chunk of tokens becomes an `Example` of inputs (seen in both directions) and targets (predicted):

    R  `[NLU]`  short spans masked        (mean 3, 15%)     25%
    X  `[NLG]`  long spans, much masked   (mean 32, 50%)    25%
    S  `[S2S]`  everything after a random point             50%

Paper: U-PaLM (arXiv:2210.11399) section 2.3; span sampling as in T5 (arXiv:1910.10683).
"""

import ast
import difflib
from dataclasses import replace

from .denoisers import Causal, Denoiser, PrefixLM, SpanCorruption
from .symbols import N_SENTINELS

# --- Mixtures -------------------------------------------------------------------------------------

Mixture = tuple[Denoiser, ...]


R = SpanCorruption(name="r", mode="nlu", mean_span=3.0, corruption_rate=0.15, weight=0.25)


X = SpanCorruption(name="x", mode="nlg", mean_span=32.0, corruption_rate=0.5, weight=0.25)


S = PrefixLM(name="s", mode="s2s", weight=0.5)


UL2R: Mixture = (R, X, S)
"""U-PaLM's final mixture (section 2.3). Of "mean 32 or up to 50%" for X we take both (as later work does)."""


UL2R_SPLIT_X: Mixture = (
    R,
    replace(X, name="x1", corruption_rate=0.15, weight=0.125),
    replace(X, name="x2", mean_span=3.0, weight=0.125, max_spans=N_SENTINELS),
    S,
)
"""The other reading of "mean 32 or up to 50%": half of X has long spans, half a high rate."""


UL2: Mixture = (
    *(replace(R, name=f"r{i + 1}", mean_span=mu, weight=1.0) for i, mu in enumerate((3.0, 8.0))),
    *(
        replace(X, name=f"x{i + 1}", mean_span=mu, corruption_rate=rate, weight=1.0, max_spans=N_SENTINELS)
        for i, (mu, rate) in enumerate([(3.0, 0.5), (8.0, 0.5), (64.0, 0.15), (64.0, 0.5)])
    ),
    replace(S, corruption_rate=0.25, weight=1.0),
)
"""UL2's seven denoisers (arXiv:2205.05131, Table 1), in equal shares; the first U-PaLM had them. Deviation: spans are
capped at the 100 sentinels, which mean 3 at 50% exceeds from 600 tokens on."""


UL2R_EOS: Mixture = (replace(R, inputs_eos=True), replace(X, inputs_eos=True), S)
"""UL2R with EOS after the inputs of R and X. T5's masks end in noise, so that inputs without it always end in a
sentinel; where text follows the last gap, a small model then does not notice that the inputs end (docs/results.md)."""


CAUSAL: Mixture = (Causal(name="causal"),)
"""The control: the same steps of plain language modelling."""


PREFIX_LM: Mixture = (replace(S, weight=1.0),)
"""The S denoiser alone."""


SUPERVISED: Mixture = (PrefixLM(name="supervised"),)
"""Finetuning: inputs and targets are given, in the layout of the S denoiser and without a mode token."""


MIXTURES = {
    "ul2r": UL2R,
    "ul2r_eos": UL2R_EOS,
    "ul2r_split_x": UL2R_SPLIT_X,
    "ul2": UL2,
    "prefix_lm": PREFIX_LM,
    "causal": CAUSAL,
}
"""By name. Add your own: `ul2r.MIXTURES["mine"] = (ul2r.R, Mine(name="mine"))`."""


DENOISERS = {"SpanCorruption": SpanCorruption, "PrefixLM": PrefixLM, "Causal": Causal}


def mixture(text: str) -> Mixture:
    """A mixture by its name, or written as in Python: denoisers with keyword arguments, joined by commas.

    >>> mixture("SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15), PrefixLM(name='s')")
    (SpanCorruption(name='r', mode='nlu', ..., mean_span=3.0, ...), PrefixLM(name='s', mode='none', ...))

    Raises:
        ValueError: an unknown name (the nearest is offered), or a text that is no such list.
    """
    if text in MIXTURES:
        return MIXTURES[text]
    if "(" not in text:
        near = difflib.get_close_matches(text, MIXTURES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(MIXTURES)}."
        raise ValueError(f"no mixture {text!r}: {hint}")
    try:
        body = ast.parse(f"[{text}]", mode="eval").body
        calls = body.elts if isinstance(body, ast.List) else []
        made = tuple(_denoiser(call) for call in calls)
    except (SyntaxError, TypeError) as e:
        raise ValueError(f"mixture {text!r}: {e}. Expected, for example, {_EXAMPLE_MIXTURE!r}.") from e
    names = [d.name for d in made]
    if len(set(names)) < len(names):
        raise ValueError(f"mixture {text!r} has the names {names}: give each denoiser its own.")
    return made


_EXAMPLE_MIXTURE = (
    "SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15, weight=0.5), PrefixLM(name='s')"
)


def _denoiser(call: ast.expr) -> Denoiser:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in DENOISERS):
        raise TypeError(f"{ast.unparse(call)} is none of {', '.join(DENOISERS)}")
    if call.args or any(k.arg is None for k in call.keywords):
        raise TypeError(f"{ast.unparse(call)}: give every argument its name")
    return DENOISERS[call.func.id](**{str(k.arg): ast.literal_eval(k.value) for k in call.keywords})
