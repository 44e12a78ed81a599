"""The tokenizer files of an export, from which Hugging Face software makes the same tokenizer."""

import json
from typing import Any

from upalm.data.hf_tokenizer import JsonTokenizer
from upalm.data.hf_vocabulary import Vocabulary
from upalm.data.tokenizer import LOW_LINE, SentencePiece, Tokenizer
from upalm.ul2r.symbols import BOS_ID, EOS_ID, UNK_ID

BYTE_PIECE_SCORE = -1e9
"""Score of byte pieces: so low that characters of text come before them."""

_BYTE_NAME_START = r"<(?=0x[0-9A-F]{2}>)"
"""First character of a text such as `<0x41>`: cut off, so that the rest is characters, not the byte 0x41."""


CONFIG_FILE = "tokenizer_config.json"
SOURCE_CARD = "SOURCE_README.md"
"""Model card of the checkpoint that this one was imported from."""


def tokenizer_files(tokenizer: Tokenizer) -> dict[str, bytes]:
    """Return the files of a tokenizer by name.

    Those of an open checkpoint come back as they were, its model card as `SOURCE_README.md`. A SentencePiece model
    becomes a `tokenizer.json` that puts BOS in front, pads with the token that no text has (`<unk>`), and has the
    sentinels as special tokens `<extra_id_i>`.
    """
    if not isinstance(tokenizer, SentencePiece):
        prefix = f"{JsonTokenizer.SOURCE}/"
        files = {name.removeprefix(prefix): content for name, content in tokenizer.files.items()}
        files.pop("config.json", None)
        if "README.md" in files:
            files[SOURCE_CARD] = files.pop("README.md")
        return {CONFIG_FILE: _config_of(tokenizer), **files}
    bos, eos, unk = tokenizer.processor.id_to_piece([BOS_ID, EOS_ID, UNK_ID])
    return {
        JsonTokenizer.FILE: json.dumps(_unigram(tokenizer), ensure_ascii=False).encode(),
        CONFIG_FILE: _config(bos, eos, {"unk_token": unk, "pad_token": unk}),
    }


def _config_of(tokenizer: Tokenizer) -> bytes:
    """Return the tokenizer_config.json of a checkpoint that came without one.

    Without it transformers takes a class by the architecture, some of which cut text their own way.
    """
    vocabulary = Vocabulary.read(tokenizer.files[JsonTokenizer.FILE])
    pieces = {i: piece for piece, i in vocabulary.ids.items()}
    return _config(pieces[tokenizer.symbols.bos_id], pieces[tokenizer.symbols.eos_id], {})


def _config(bos: str, eos: str, others: dict[str, str]) -> bytes:
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": bos, "eos_token": eos} | others
    return json.dumps(settings | {"clean_up_tokenization_spaces": False}, indent=2).encode() + b"\n"


def _unigram(tokenizer: SentencePiece) -> dict[str, Any]:
    sentinels = {i: f"<extra_id_{n}>" for n, i in enumerate(tokenizer.symbols.sentinels)}
    model = tokenizer.processor
    pieces = [piece.replace(LOW_LINE, " ") for piece in model.id_to_piece(list(range(tokenizer.vocab_size)))]
    vocabulary = [  # U+2581 in text becomes bytes
        (sentinels.get(i, piece), BYTE_PIECE_SCORE if model.is_byte(i) else model.get_score(i))
        for i, piece in enumerate(pieces)
    ]
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = sorted((BOS_ID, EOS_ID, UNK_ID, *sentinels))
    bos = model.id_to_piece(BOS_ID)
    first, second = (
        [{"SpecialToken": {"id": bos, "type_id": i}}, {"Sequence": {"id": name, "type_id": i}}]
        for i, name in enumerate("AB")
    )
    return {
        "version": "1.0",
        "added_tokens": [{"id": i, "content": vocabulary[i][0], **flags} for i in special],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"Regex": _BYTE_NAME_START},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": first,
            "pair": [*first, *second],
            "special_tokens": {bos: {"id": bos, "ids": [BOS_ID], "tokens": [bos]}},
        },
        "decoder": {"type": "Sequence", "decoders": [{"type": "ByteFallback"}, {"type": "Fuse"}]},
        "model": {"type": "Unigram", "unk_id": UNK_ID, "vocab": vocabulary, "byte_fallback": True},
    }
