"""The picture at the top of the README: the same gaps, filled before and after UL2R.

    python benchmarks/fills_picture.py models/smollm2 runs/ul2r_smollm2 docs/_static/fills.svg CAPTION

Greedy answers under the grammar, and what the true span costs in bits, apart from its sentinel and the end of the
answer; beside it the same text as a continuation of the text before the gap.
"""

import math
import sys
from html import escape
from pathlib import Path
from typing import NamedTuple

import upalm

GAP = "<extra_id_0>"
TEXTS = (
    (f"class Point:\n    def __init__(self, x, y):\n        {GAP}\n        self.y = y\n", "self.x = x"),
    (
        f"def close(self):\n    if self.file is not None:\n        {GAP}\n        self.file = None\n",
        "self.file.close()",
    ),
    (f"try:\n    value = int(text)\nexcept {GAP}:\n    value = None\n", "ValueError"),
)
SETTINGS = upalm.GenerationConfig(max_new_tokens=12, stop=("\n",))
LINE, SIZE, LEFT, WIDTH = 21, 14, 24, 760
BARS, PER_BIT = 380, 2.3

STYLE = """
.card { fill: #ffffff } .ink { fill: #24292f } .soft { fill: #57606a }
.before { fill: #a40e26 } .after { fill: #116329 }
.bar-before { fill: #cf222e } .bar-after { fill: #1a7f37 } .form { fill: #afb8c1 } .mark { fill: #24292f }
@media (prefers-color-scheme: dark) {
  .card { fill: #161b22 } .ink { fill: #e6edf3 } .soft { fill: #9198a1 }
  .before { fill: #ff9492 } .after { fill: #56d364 }
  .bar-before { fill: #ff9492 } .bar-after { fill: #56d364 } .form { fill: #6e7681 } .mark { fill: #e6edf3 }
}
text { white-space: pre }
"""


class Cost(NamedTuple):
    """Bits of the missing text in its gap, of the form around it, and of the text from left to right alone."""

    text: float
    form: float
    left_only: float


def cost(model: upalm.LanguageModel, text: str, truth: str) -> Cost:
    """Price the true span; the form is its sentinel and the end of the answer."""
    opening, *span, end = (-x / math.log(2) for x in model.score(text, [truth], mode="nlg").log_probs)
    left_only = model.score(text.split(GAP)[0], truth, attention="causal").log_prob
    return Cost(float(sum(span)), float(opening + end), -left_only / math.log(2))


def draw(models: dict[str, upalm.LanguageModel], caption: str) -> str:
    """The picture as SVG."""
    parts, y = [], 34

    def write(x: float, text: str, style: str, family: str = "monospace") -> None:
        parts.append(f'<text x="{x}" y="{y}" class="{style}" font-family="{family}">{escape(text)}</text>')

    def box(x: float, width: float, style: str, top: float = -11, height: float = 13) -> None:
        parts.append(f'<rect x="{x:.1f}" y="{y + top}" width="{width:.1f}" height="{height}" class="{style}"/>')

    write(
        LEFT,
        "A gap, what fills it, and what the missing text costs in bits, before and after UL2R",
        "ink",
        "sans-serif",
    )
    y += LINE + 6
    for text, truth in TEXTS:
        for line in text.rstrip("\n").replace(GAP, "\u2591" * 12).split("\n"):
            write(LEFT, line, "ink")
            y += LINE
        write(LEFT + 20, f"missing   {truth}", "soft")
        y += LINE
        for style, (name, model) in zip(("before", "after"), models.items(), strict=True):
            bits = cost(model, text, truth)
            answer = model.infill(text, SETTINGS).spans[0].strip()
            write(LEFT + 20, f"{name:9} {answer}", style)
            box(BARS, PER_BIT * bits.text, f"bar-{style}")
            box(BARS + PER_BIT * bits.text, PER_BIT * bits.form, "form")
            box(BARS + PER_BIT * bits.left_only, 2, "mark", -14, 19)
            write(BARS + PER_BIT * (bits.text + bits.form) + 6, f"{bits.text:.0f} + {bits.form:.0f}", "soft")
            y += LINE
        y += 14
    box(LEFT, 12, "bar-before")
    box(LEFT + 14, 12, "bar-after")
    write(LEFT + 34, "the missing text", "soft", "sans-serif")
    box(LEFT + 170, 12, "form")
    write(LEFT + 190, "the form of an answer: sentinel and end", "soft", "sans-serif")
    box(LEFT + 470, 2, "mark", -14, 19)
    write(LEFT + 480, "the text from left to right alone", "soft", "sans-serif")
    y += LINE
    write(LEFT, caption, "soft", "sans-serif")
    height = y + 20
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-size="{SIZE}"><style>{STYLE}</style>\n<rect class="card" width="{WIDTH}" height="{height}" rx="8"/>\n'
        f"{body}\n</svg>\n"
    )


if __name__ == "__main__":
    before, after, picture, caption = sys.argv[1:]
    models = {"before": upalm.load(before), "after": upalm.load(after)}
    Path(picture).write_text(draw(models, caption), "utf-8")
