"""U-PaLM and UL2R in JAX."""

from etils import epy as _epy

from upalm._version import __version__ as __version__

with _epy.lazy_api_imports(globals()):
    from upalm import checkpoints, data, distributed, evals, inference, interop, model, planning, training, ul2r
    from upalm.checkpoints.folder import load_model
    from upalm.inference.generation import generate, infill, stream
    from upalm.inference.scoring import rank, score
    from upalm.training.launch import run
