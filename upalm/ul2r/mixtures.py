"""U-PaLM's mixture and UL2's; a mixture from its name or from text."""

import ast
import difflib
from dataclasses import fields, replace

import numpy as np

from .denoisers import Causal, Denoiser, Gaps, Lines, PrefixLM, SpanCorruption
from .symbols import N_SENTINELS

Mixture = tuple[Denoiser, ...]
"""Denoisers with weights; `Batch.denoiser_ids` counts them from 0."""

MAX_DENOISERS = 127
"""Ids of denoisers are int8."""

R = SpanCorruption(name="r", mode="nlu", mean_span=3.0, corruption_rate=0.15, weight=0.25)
"""U-PaLM's R denoiser: short spans masked."""

X = SpanCorruption(name="x", mode="nlg", mean_span=32.0, corruption_rate=0.5, weight=0.25)
"""U-PaLM's X denoiser: long spans, much masked."""

S = PrefixLM(name="s", mode="s2s", weight=0.5)
"""U-PaLM's S denoiser: everything after a random point."""

UL2R: Mixture = (R, X, S)
"""U-PaLM's final mixture (section 2.3). Of "mean 32 or up to 50%" for X we take both, as later work does."""

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
"""UL2R with EOS after the inputs of R and X. T5's masks end in noise, so inputs without EOS always end in a sentinel.
Where text follows the last gap, a small model then does not notice that the inputs end (docs/results.md)."""

UL2R_INFILL: Mixture = (replace(R, inputs_eos=True, roll=True), replace(X, inputs_eos=True, roll=True), S)
"""For filling gaps with text after them: UL2R with EOS after the inputs of R and X, and with rolled masks. EOS alone is
enough for a few hundred steps; then a model learns the other cue, a sentinel before the EOS (docs/results.md)."""

UL2R_GAPS: Mixture = (
    *(replace(d, inputs_eos=True, roll=True, shortest=0.25, weight=w) for d, w in ((R, 0.15), (X, 0.1))),
    replace(S, shortest=0.25, weight=0.25),
    Lines(name="line", mode="nlg", mean_span=12.0, inputs_eos=True, shortest=0.25, weight=0.2),
    Gaps(name="gap", mode="nlg", mean_span=4.0, inputs_eos=True, shortest=0.25, weight=0.1),
    Gaps(name="words", mode="nlu", mean_span=4.0, n_spans=3, inputs_eos=True, shortest=0.25, weight=0.2),
)
"""For gaps as people leave them: UL2R_INFILL in chunks of random length, with a missing line in 20% of the examples,
one short gap in 10% and three in 20%.

In chunks that fill a row EOS always has one place. A model learns that place, and then seldom ends an answer elsewhere
(docs/results.md). Deviation: the paper has chunks of one length, and none of the three denoisers of gaps."""

CAUSAL: Mixture = (Causal(name="causal"),)
"""The control: the same steps of plain language modelling."""

PREFIX_LM: Mixture = (replace(S, weight=1.0),)
"""The S denoiser alone."""

SUPERVISED: Mixture = (PrefixLM(name="supervised"),)
"""Finetuning on given inputs and targets, in the layout of the S denoiser and without a mode token."""

MIXTURES = {
    "ul2r": UL2R,
    "ul2r_eos": UL2R_EOS,
    "ul2r_gaps": UL2R_GAPS,
    "ul2r_infill": UL2R_INFILL,
    "ul2r_split_x": UL2R_SPLIT_X,
    "ul2": UL2,
    "prefix_lm": PREFIX_LM,
    "causal": CAUSAL,
}
"""The mixtures that have a name."""

_EXAMPLE = "SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15, weight=0.5), PrefixLM(name='s')"


def mixture(given: str | Mixture) -> Mixture:
    """Return a mixture from its name, from text, or from denoisers, checked.

    Text is as in Python: denoisers with keyword arguments, joined by commas. Every subclass of `Denoiser` that some
    imported module defines can be named in it.

    >>> mixture("SpanCorruption(name='r', mode='nlu', mean_span=3.0, corruption_rate=0.15), PrefixLM(name='s')")
    (SpanCorruption(name='r', mode='nlu', ..., mean_span=3.0, ...), PrefixLM(name='s', mode='none', ...))

    Raises:
        ValueError: an unknown name (the nearest is offered), text that is no list of denoisers, a class that is not
            defined, or denoisers that share a name.
    """
    if not isinstance(given, str):
        if not isinstance(given, tuple | list):
            raise ValueError(f"mixture is {given!r}, expected a name, text or a tuple of denoisers.")
        return _check(tuple(given), f"mixture {given!r}")
    if given in MIXTURES:
        return MIXTURES[given]
    if "(" not in given:
        near = difflib.get_close_matches(given.lower(), MIXTURES, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"expected one of {sorted(MIXTURES)}."
        raise ValueError(f"no mixture {given!r}: {hint}")
    try:
        body = ast.parse(f"[{given}]", mode="eval").body
        if not isinstance(body, ast.List):
            raise TypeError("it is no list of denoisers")
        denoisers = tuple(_parse_denoiser(call) for call in body.elts)
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as e:
        problem = str(e).rstrip(".")
        raise ValueError(f"mixture {_short(given)!r}: {problem}. Expected, for example, {_EXAMPLE!r}.") from e
    return _check(denoisers, f"mixture {_short(given)!r}")


def mixture_text(given: Mixture) -> str:
    """Write a mixture as the text from which `mixture` reads it back: its name, or its denoisers.

    >>> mixture_text(UL2R), mixture_text((Causal(name="c"),))
    ('ul2r', "Causal(name='c', mode='none', weight=1.0, inputs_eos=False, shortest=1.0)")

    Raises:
        ValueError: a denoiser with a field that is no literal, or whose class has the name of another.
    """
    for name, known in MIXTURES.items():
        if known == given:
            return name
    text = ", ".join(_write_denoiser(d) for d in given)
    for denoiser, parsed in zip(given, mixture(text), strict=True):
        if parsed != denoiser:
            raise ValueError(
                f"denoiser {denoiser.name!r} cannot be stored: text has {parsed!r} for {denoiser!r}. Give its class a "
                "name that no other denoiser has."
            )
    return text


def _check(denoisers: Mixture, what: str) -> Mixture:
    if wrong := [d for d in denoisers if not isinstance(d, Denoiser)]:
        raise ValueError(f"{what} has {wrong[0]!r}, which is no Denoiser.")
    if not 1 <= len(denoisers) <= MAX_DENOISERS:
        raise ValueError(f"{what} has {len(denoisers)} denoisers, expected 1 to {MAX_DENOISERS}.")
    if not sum(d.weight for d in denoisers) < float("inf"):
        raise ValueError(f"{what} has weights of an infinite sum: they are shares, so make them smaller.")
    names = [d.name for d in denoisers]
    if len(set(names)) < len(names):
        raise ValueError(f"{what} has the names {names}: give each denoiser its own.")
    return denoisers


def _parse_denoiser(call: ast.expr) -> Denoiser:
    if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
        raise TypeError(f"{_short(ast.unparse(call))} is no denoiser")
    classes = _denoiser_classes()
    if call.func.id not in classes:
        raise TypeError(
            f"no denoiser class {call.func.id!r} is defined (there are {', '.join(classes)}); "
            "if it is your own, import the module that defines it first"
        )
    arguments = {}
    for keyword in call.keywords:
        try:
            value = ast.literal_eval(keyword.value)
        except ValueError:
            raise TypeError(f"{ast.unparse(keyword.value)} is no number, string or other literal") from None
        if keyword.arg in arguments:
            raise TypeError(f"{ast.unparse(call)}: {keyword.arg} is given twice")
        arguments[keyword.arg] = value
    if call.args or None in arguments:
        raise TypeError(f"{ast.unparse(call)}: give every argument its name")
    return classes[call.func.id](**arguments)


def _denoiser_classes() -> dict[str, type[Denoiser]]:
    """Every defined denoiser by the name of its class: the newest of a name, but ours before all others."""
    classes: dict[str, type[Denoiser]] = {}
    pending: list[type[Denoiser]] = [Denoiser]
    while pending:
        subclasses = pending.pop(0).__subclasses__()
        classes |= {c.__name__: c for c in subclasses}
        pending += subclasses
    for ours in (SpanCorruption, Gaps, Lines, PrefixLM, Causal):
        classes[ours.__name__] = ours
    return classes


def _write_denoiser(denoiser: Denoiser) -> str:
    arguments = []
    for field in fields(denoiser):
        value = getattr(denoiser, field.name)
        value = value.item() if isinstance(value, np.generic) else value
        try:
            ast.literal_eval(repr(value))
        except (ValueError, SyntaxError) as e:
            raise ValueError(
                f"denoiser {denoiser.name!r} cannot be stored: {field.name} is {value!r}, expected a number, "
                "a string, or a tuple, list or dict of them."
            ) from e
        arguments.append(f"{field.name}={value!r}")
    return f"{type(denoiser).__name__}({', '.join(arguments)})"


def _short(text: str) -> str:
    return text if len(text) <= 300 else f"{text[:300]}..."
