"""Texts -> token ids, by the tokenizer of a prepared model.

A multilingual vocabulary has 250,000 pieces. The library `tokenizers` needs 280 MB for it, and a millisecond
for an ask. SentencePiece needs 50 MB and a tenth of the time, and gives the same tokens. So `extproc prepare`
writes the tokenizer for SentencePiece, if both agree.
"""

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from extproc.encoder.parts import Parts, tokens_in
from extproc.encoder.protocols import reading

TOKENIZER_FILE, PIECES_FILE = "tokenizer.json", "tokenizer.spm"
# SentencePiece's name for its table of normalised characters: NFKC and some more. XLM-R uses it.
_NORMALISER = "nmt_nfkc"
_SPACE = "▁"
# SentencePiece's numbers: a unigram model; and for pieces: normal, unknown, control (never found in a text).
_UNIGRAM, _NORMAL, _UNKNOWN, _CONTROL = 1, 1, 2, 3

# The ids of a text, and the numbers of those in its parts. None: the whole text.
MarkedTokens = tuple[list[int], list[int]]


class Tokens(Protocol):
    """Texts -> token ids."""

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, at most as many as the model reads, with those at both ends."""

    def encode_parts(self, text: str, parts: Parts) -> tuple[list[int], list[int]]:
        """Return the ids of the text, and the numbers of those in its parts. None of them if the parts are cut."""


class JsonTokens:
    """The tokenizer in a `tokenizer.json`."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        self._tokenizer = Tokenizer.from_file(str(path))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(max_tokens)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, with those at both ends."""
        return [encoding.ids for encoding in self._tokenizer.encode_batch_fast(list(texts))]

    def encode_parts(self, text: str, parts: Parts) -> tuple[list[int], list[int]]:
        """Return the ids of the text, and the numbers of those in its parts."""
        encoding = self._tokenizer.encode(text)
        return encoding.ids, tokens_in(parts, encoding.offsets)


class PieceTokens:
    """The tokenizer in a file of SentencePiece. A text is between the ids of `bos` and `eos`."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        from sentencepiece import SentencePieceProcessor
        from sentencepiece.sentencepiece_pb2 import SentencePieceText

        self._parse = SentencePieceText.FromString
        self._pieces = SentencePieceProcessor(model_file=str(path))
        self._ends = [self._pieces.bos_id()], [self._pieces.eos_id()]
        self._most = max_tokens - 2

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of each text, with those at both ends."""
        first, last = self._ends
        return [[*first, *ids[: self._most], *last] for ids in self._pieces.encode(list(texts), num_threads=1)]

    def encode_parts(self, text: str, parts: Parts) -> tuple[list[int], list[int]]:
        """Return the ids of the text, and the numbers of those in its parts."""
        encoded = self._pieces.encode(text, out_type="serialized_proto")
        pieces = self._parse(encoded).pieces[: self._most]
        # SentencePiece counts bytes.
        in_bytes = tuple((_bytes(text[:start]), _bytes(text[:end])) for start, end in parts)
        inside = tokens_in(in_bytes, [(piece.begin, piece.end) for piece in pieces])
        first, last = self._ends
        return [*first, *(piece.id for piece in pieces), *last], [number + 1 for number in inside]


def _bytes(text: str) -> int:
    return len(text.encode())


def load_tokens(folder: Path, max_tokens: int) -> Tokens:
    """Load the tokenizer of a prepared model. Raises EncoderError."""
    pieces = folder / PIECES_FILE
    if pieces.exists():
        with reading(pieces):
            return PieceTokens(pieces, max_tokens)
    with reading(folder / TOKENIZER_FILE):
        return JsonTokens(folder / TOKENIZER_FILE, max_tokens)


def write_tokens(tokenizer: Any, folder: Path, texts: Sequence[str], max_tokens: int) -> None:
    """Write a tokenizer of the library `tokenizers`, for SentencePiece if `texts` then have the same ids."""
    (folder / TOKENIZER_FILE).write_text(tokenizer.to_str())
    pieces = _pieces_file(msgspec.json.decode(tokenizer.to_str()))
    if pieces is None:
        return
    (folder / PIECES_FILE).write_bytes(pieces)
    texts = [text.strip() for text in texts]  # SentencePiece makes no token of a space at the end
    reference = JsonTokens(folder / TOKENIZER_FILE, max_tokens).encode(texts)
    if PieceTokens(folder / PIECES_FILE, max_tokens).encode(texts) == reference:
        (folder / TOKENIZER_FILE).unlink()
    else:
        (folder / PIECES_FILE).unlink()


def unigram_tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> Any:
    """Return XLM-R's tokenizer with this vocabulary (Conneau et al. 2020), for the library `tokenizers`."""
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

    tokenizer = Tokenizer(models.Unigram(list(zip(pieces, scores, strict=True)), unk_id=pieces.index("<unk>")))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Precompiled(_character_table()), normalizers.Replace(Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="always")
    tokenizer.decoder = decoders.Metaspace(_SPACE, prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[(name, pieces.index(name)) for name in ("<s>", "</s>")]
    )
    return tokenizer


def _character_table() -> bytes:
    from sentencepiece import SentencePieceNormalizer
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    normaliser = SentencePieceNormalizer(rule_name=_NORMALISER)
    table = ModelProto.FromString(normaliser.serialized_model_proto()).normalizer_spec.precompiled_charsmap
    return bytes(table)


def _pieces_file(tokenizer: dict[str, Any]) -> bytes | None:
    """Return the file for SentencePiece of a `tokenizer.json`, or None if it is not of a unigram model."""
    model, table = tokenizer["model"], _table_in(tokenizer["normalizer"])
    names = [piece for piece, _ in model["vocab"]] if model["type"] == "Unigram" else []
    if table is None or not {"<s>", "</s>", "<unk>"} <= set(names):
        return None
    from sentencepiece.sentencepiece_model_pb2 import ModelProto

    proto = ModelProto()
    spec, trained = proto.normalizer_spec, proto.trainer_spec
    spec.name, spec.precompiled_charsmap = _NORMALISER, table
    spec.add_dummy_prefix = spec.remove_extra_whitespaces = spec.escape_whitespaces = True
    trained.model_type, trained.vocab_size = _UNIGRAM, len(names)
    trained.bos_id, trained.eos_id, trained.unk_id = map(names.index, ("<s>", "</s>", "<unk>"))
    trained.pad_id = names.index("<pad>") if "<pad>" in names else -1
    special = {added["content"] for added in tokenizer["added_tokens"] if added["special"]}
    special |= {"<s>", "</s>", "<pad>", "<mask>"}
    for piece, score in model["vocab"]:
        kind = _UNKNOWN if piece == "<unk>" else _CONTROL if piece in special else _NORMAL
        proto.pieces.add(piece=piece, score=score, type=kind)
    return bytes(proto.SerializeToString())


def _table_in(normalizer: dict[str, Any] | None) -> bytes | None:
    """Return SentencePiece's table of characters in the normalizer of a `tokenizer.json`."""
    steps = [] if normalizer is None else normalizer.get("normalizers", [normalizer])
    tables = [step["precompiled_charsmap"] for step in steps if step["type"] == "Precompiled"]
    return base64.b64decode(tables[0]) if tables else None
