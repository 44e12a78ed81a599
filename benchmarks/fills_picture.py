"""The picture at the top of the README: the same gaps, filled before and after UL2R.

    python benchmarks/fills_picture.py models/smollm2 runs/ul2r_smollm2 docs/_static/fills.svg CAPTION

Greedy answers under the grammar, and what the true span costs in bits, with its sentinel and the end of the answer.
"""

import math
import sys
from html import escape
from pathlib import Path

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
LIMIT = 12
LINE, SIZE, LEFT, WIDTH = 21, 14, 24, 760

STYLE = """
.card { fill: #ffffff } .ink { fill: #24292f } .soft { fill: #57606a }
.before { fill: #a40e26 } .after { fill: #116329 }
@media (prefers-color-scheme: dark) {
  .card { fill: #161b22 } .ink { fill: #e6edf3 } .soft { fill: #9198a1 }
  .before { fill: #ff9492 } .after { fill: #56d364 }
}
text { white-space: pre }
"""


def fill(model: upalm.LanguageModel, text: str, truth: str) -> tuple[str, float]:
    """The answer of a model, and the bits of the true span."""
    settings = upalm.GenerationConfig(max_new_tokens=LIMIT, stop=("\n",))
    log_prob = model.score(text, [truth], mode="nlg").log_prob
    return model.infill(text, settings).spans[0].strip(), -log_prob / math.log(2)


def draw(models: dict[str, upalm.LanguageModel], caption: str) -> str:
    """The picture as SVG."""
    lines, y = [], 34

    def write(x: float, text: str, style: str, family: str = "monospace") -> None:
        lines.append(f'<text x="{x}" y="{y}" class="{style}" font-family="{family}">{escape(text)}</text>')

    write(LEFT, "The gap, and what fills it before and after UL2R", "ink", "sans-serif")
    y += LINE + 6
    for text, truth in TEXTS:
        for line in text.rstrip("\n").replace(GAP, "\u2591" * 12).split("\n"):
            write(LEFT, line, "ink")
            y += LINE
        write(LEFT + 20, f"missing   {truth}", "soft")
        y += LINE
        for style, (name, model) in zip(("before", "after"), models.items(), strict=True):
            answer, bits = fill(model, text, truth)
            write(LEFT + 20, f"{name:9} {answer}", style)
            write(WIDTH - 250, f"{bits:3.0f} bits for what is missing", "soft")
            y += LINE
        y += 14
    write(LEFT, caption, "soft", "sans-serif")
    y += LINE
    write(LEFT, "Fewer bits mean that the missing text surprises the model less.", "soft", "sans-serif")
    height = y + 20
    body = "\n".join(lines)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}" height="{height}" '
        f'font-size="{SIZE}"><style>{STYLE}</style>\n<rect class="card" width="{WIDTH}" height="{height}" rx="8"/>\n'
        f"{body}\n</svg>\n"
    )


if __name__ == "__main__":
    before, after, picture, caption = sys.argv[1:]
    models = {"before": upalm.load(before), "after": upalm.load(after)}
    Path(picture).write_text(draw(models, caption), "utf-8")
