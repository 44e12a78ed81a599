"""Inference: fill gaps, continue prompts, score targets."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.inference.config import GenerationConfig
    from upalm.inference.decoding import DecodingModel
    from upalm.inference.generation import (
        Continuation,
        Infill,
        Piece,
        generate,
        generate_batch,
        infill,
        infill_batch,
        stream,
    )
    from upalm.inference.language_model import LanguageModel, load
    from upalm.inference.sampling import Sampler
    from upalm.inference.scoring import rank, score
