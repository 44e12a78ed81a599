"""Inference."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.inference.decoding import DecodingModel
    from upalm.inference.generation import Continuation, Infill, generate, infill, infill_batch, stream
    from upalm.inference.sampling import Sampler
    from upalm.inference.scoring import rank, score
