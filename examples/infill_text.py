"""Fill two gaps with the shipped base model, which never saw a gap, or with a checkpoint of your own.

python examples/infill_text.py [runs/quickstart/ul2r]
"""

import sys
from pathlib import Path

import upalm
from upalm.checkpoints.folder import load_model
from upalm.inference.generation import infill

folder = sys.argv[1] if len(sys.argv) > 1 else Path(upalm.__file__).parent / "assets" / "palm_tiny"
model, tokenizer, _ = load_model(folder)
text = "def read(path):\n    with open(<extra_id_0>) as f:\n        return <extra_id_1>\n"
for mode in ("none", "nlu", "nlg"):
    filled = infill(model, tokenizer, text, mode=mode, max_new_tokens=16)[0]
    print(f"--- mode {mode}: {filled.spans}\n{filled.text}")
