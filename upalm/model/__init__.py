"""PaLM."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.model.attention import KeyRange, attend, key_range
    from upalm.model.config import PALM, ModelConfig
    from upalm.model.palm import Block, Decoder, empty_model
