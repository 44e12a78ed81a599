import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from support.denoisers import SYMBOLS

from upalm import ul2r


def test_the_mixture_is_the_papers():
    """U-PaLM section 2.3: 25% R (mean 3, 15%), 25% X (mean 32, 50%), 50% S."""
    r, x, s = ul2r.UL2R
    assert (r.mode, r.mean_span, r.corruption_rate, r.weight) == ("nlu", 3, 0.15, 0.25)
    assert (x.mode, x.mean_span, x.corruption_rate, x.weight) == ("nlg", 32, 0.5, 0.25)
    assert (s.mode, s.corruption_rate, s.weight) == ("s2s", 0.5, 0.5)


# UL2, arXiv:2205.05131, Table 1 (as public configurations of UL2 have it): (mean span, rate)
UL2_TABLE = [(3, 0.15), (8, 0.15), (3, 0.5), (8, 0.5), (64, 0.15), (64, 0.5)]


def test_presets_are_the_papers_tables():
    spans = [d for d in ul2r.UL2 if isinstance(d, ul2r.SpanCorruption)]
    assert [(d.mean_span, d.corruption_rate) for d in spans] == UL2_TABLE
    assert [d.mode for d in ul2r.UL2] == ["nlu", "nlu", "nlg", "nlg", "nlg", "nlg", "s2s"]
    assert ul2r.UL2[-1] == ul2r.PrefixLM(name="s", mode="s2s", corruption_rate=0.25)
    assert {d.weight for d in ul2r.UL2} == {1.0}
    # UL2's rule for "extreme": spans of 12 tokens or more, or a rate of 30% or more
    for d in (*spans, *(d for d in ul2r.UL2R_SPLIT_X if isinstance(d, ul2r.SpanCorruption))):
        assert (d.mode == "nlg") == (d.mean_span >= 12 or d.corruption_rate >= 0.3), d
    split = {d.name: (getattr(d, "mean_span", None), d.corruption_rate, d.weight) for d in ul2r.UL2R_SPLIT_X}
    assert split == {"r": (3, 0.15, 0.25), "x1": (32, 0.15, 0.125), "x2": (3, 0.5, 0.125), "s": (None, 0.5, 0.5)}
    assert ul2r.PREFIX_LM == (ul2r.PrefixLM(name="s", mode="s2s"),)


@pytest.mark.parametrize("mixture", sorted(ul2r.MIXTURES))
def test_every_preset_fits_the_papers_rows(mixture):
    for denoiser in ul2r.MIXTURES[mixture]:
        ul2r.Segmenter(denoiser, ul2r.Budget.split(2048), SYMBOLS)


@dataclass(frozen=True, kw_only=True)
class Halves(ul2r.PrefixLM):
    """A denoiser of a user's own."""

    share: object = 0.5


def test_a_mixture_is_written_as_text_and_read_back():
    mine = (*ul2r.UL2R, Halves(name="mine", share=(1, "a")), ul2r.Causal(name="c", weight=np.float64(0.25)))
    text = ul2r.mixture_text(mine)
    assert ul2r.mixture(text) == mine == ul2r.mixture(mine)
    assert "Halves(name='mine'" in text
    assert ul2r.mixture_text(tuple(ul2r.UL2)) == "ul2"


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("ulr2", "did you mean 'ul2'"),
        ("", "expected one of"),
        ("Middling(name='m')", "import the module that defines it first"),
        ("PrefixLM('s')", "give every argument its name"),
        ("PrefixLM(name='s'), Causal(name='s')", "each denoiser its own"),
        ("PrefixLM(name='s', rate=0.1)", "rate"),
        ("PrefixLM(name=open('x'))", "Expected, for example"),
        ("PrefixLM(name='s')] + [Causal(name='c')", "no list of denoisers"),
        ("(" * 5000, "Expected, for example"),
        ("PrefixLM(name='s', weight=1e999)", "finite"),
        ("PrefixLM(name='a', name='b')", "name is given twice"),
        ("PrefixLM(name='s', weight=nan)", "nan is no number"),
        ("PrefixLM(name='')", "not empty"),
        ("PrefixLM(name='a', weight=1e308), PrefixLM(name='b', weight=1e308)", "infinite sum"),
        ((), "0 denoisers"),
        (tuple(ul2r.Causal(name=str(i)) for i in range(128)), "1 to 127"),
    ],
)
def test_bad_mixtures_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        ul2r.mixture(given)


def test_a_mixture_that_text_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="share is .*expected a number"):
        ul2r.mixture_text((Halves(name="mine", share=np.ones(3)),))
    other = dataclass(frozen=True, kw_only=True)(type("Halves", (ul2r.PrefixLM,), {}))
    with pytest.raises(ValueError, match="name that no other denoiser has|unexpected keyword"):
        ul2r.mixture_text((Halves(name="mine"), other(name="other")))


ALONE = """
import sys, numpy as np
import borrowed as ul2r
tokens = np.arange(1, 200)
for name, mixture in ul2r.MIXTURES.items():
    for denoiser in mixture:
        if isinstance(denoiser, ul2r.SpanCorruption):
            symbols = ul2r.Symbols(tuple(range(1999, 1899, -1)), {})
            example = denoiser(tokens, np.random.default_rng(0), symbols)
            assert np.array_equal(ul2r.restore(example, symbols.sentinels), tokens)
known = {*sys.stdlib_module_names, "numpy", "borrowed", "__main__", "cython_runtime"}
outside = {m.split(".")[0] for m in sys.modules} - known
print(sorted(m for m in outside if not m.startswith(("_", "sitecustomize"))))
"""


def test_the_folder_works_elsewhere_under_another_name(tmp_path):
    """The folder needs NumPy and the standard library alone, and works where upalm is not to be found."""
    shutil.copytree(Path(ul2r.__file__).parent, tmp_path / "borrowed")
    program = "import sys; sys.path.insert(0, '.')\n" + ALONE
    done = subprocess.run(
        [sys.executable, "-P", "-c", program], cwd=tmp_path, env={"PYTHONSAFEPATH": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_gaps_are_a_line_or_a_few_words_with_text_on_both_sides():
    tokens, rng = np.arange(230) % 12, np.random.default_rng(0)
    for name, n_masked, n_spans in (("line", 10 / 3, 1), ("gap", 4, 1), ("words", 12, 3)):  # lines of 3, 3 and 4
        denoiser = next(d for d in ul2r.UL2R_GAPS if d.name == name)
        examples = [denoiser(tokens, rng, SYMBOLS) for _ in range(1000)]
        assert np.mean([len(e.targets) - n_spans for e in examples]) == pytest.approx(n_masked, rel=0.1)
        assert {int(np.isin(e.inputs, SYMBOLS.sentinels).sum()) for e in examples} == {n_spans}
        ends = [e.inputs[-1] in SYMBOLS.sentinels or e.inputs[0] in SYMBOLS.sentinels for e in examples]
        assert np.mean(ends) < 0.05
