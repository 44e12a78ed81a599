"""Fill two gaps with the model that the package ships, or with a checkpoint of your own.

python examples/infill_text.py [runs/quickstart/ul2r]
"""

import sys
from typing import get_args

import upalm
from upalm.inference.config import Mode

model = upalm.load(*sys.argv[1:])
text = "def read(path):\n    with open(<extra_id_0>) as f:\n        return <extra_id_1>\n"
for mode in get_args(Mode):
    filled = model.infill(text, upalm.GenerationConfig(mode=mode, max_new_tokens=16))
    print(f"--- mode {mode}: {filled.spans}\n{filled.text}")
