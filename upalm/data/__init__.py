"""Text to batches: sources, tokenizers, shards, packing, the loader."""

from etils import epy as _epy

with _epy.lazy_api_imports(globals()):
    from upalm.data.config import DataConfig
    from upalm.data.hf_tokenizer import JsonTokenizer, load_tokenizer
    from upalm.data.loader import Loader
    from upalm.data.readers import Document
    from upalm.data.shards import Shards, build
    from upalm.data.tokenizer import SentencePiece, Tokenizer
    from upalm.data.tokens import Tokens, encode
