"""U-PaLM and UL2R in JAX.

    import upalm

    model = upalm.load()
    print(model.infill("def add(a, b):<extra_id_0>return c").text)

Names load their modules when they are first used: `import upalm` loads no JAX. In the order of the paper, read `ul2r`
(the objective), `data` (text to batches), `model`, `training`, `checkpoints`, `inference`, `evals`.
"""

from etils import epy as _epy

from upalm._version import __version__ as __version__

with _epy.lazy_api_imports(globals()):
    from upalm import checkpoints, data, distributed, evals, inference, interop, model, planning, training, ul2r
    from upalm.checkpoints.folder import load_model
    from upalm.checkpoints.shipped import PALM_TINY, UPALM_TINY
    from upalm.inference.config import GenerationConfig
    from upalm.inference.language_model import LanguageModel, load
    from upalm.inference.sampling import Sampler
    from upalm.training.launch import run
