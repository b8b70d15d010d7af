"""Vectors of utterances on disk: a start or a command encodes only the utterances that are new.

Use it for utterances, which are configuration. Texts of requests are private and must not reach it.
"""

import contextlib
import copy
import hashlib
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from extproc.encoder.batcher import RememberingEncoder
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.parts import Parts, encode_parts
from extproc.encoder.prepared_sentences import PreparedSentences
from extproc.encoder.protocols import Encoder, Vectors

log = logging.getLogger(__name__)

# Vectors of texts that this configuration does not have: 16,384 of 384 floats are 25 MB. Several configurations may
# share one encoder, and an edit may be taken back.
_MOST_OTHERS = 16_384
_HASH_BYTES = 16


def storing(encoder: Encoder) -> Encoder:
    """Return the same encoder with a file of vectors, if it is prepared. Otherwise return the encoder."""
    if not isinstance(encoder, FeatureEncoder) or not isinstance(encoder.sentences, PreparedSentences):
        return encoder
    with_file = copy.copy(encoder)
    with_file.sentences = StoringSentences(encoder.sentences, encoder.sentences.vectors)
    return with_file


def folder_of(encoder: Encoder) -> Path | None:
    """Return the folder of the prepared model that `encoder` runs. None: it is not prepared."""
    if isinstance(encoder, RememberingEncoder):
        return folder_of(encoder.encoder)
    sentences = encoder.sentences if isinstance(encoder, FeatureEncoder) else None
    if isinstance(sentences, StoringSentences):
        return sentences.file.parent
    return sentences.vectors.parent if isinstance(sentences, PreparedSentences) else None


class StoringSentences:
    """An encoder of sentences that stores each vector in a file, under the hash of its text and parts.

    Processes may share the file: each of them replaces it as a whole. A file that is missing or damaged, or that
    cannot be written, costs time and nothing else.
    """

    def __init__(self, sentences: Encoder, file: Path) -> None:
        """The vectors in `file` must be of this encoder. A file of another dimension is replaced."""
        self._sentences, self.file = sentences, file

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length, and store the rows that are new."""
        return self.encode_parts(texts, [()] * len(texts))[0]

    def encode_parts(self, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(texts), d] with rows of unit length: of the texts, and of their parts."""
        stored = _read(self.file)
        by_key = {key_of(text, spans): (text, spans) for text, spans in zip(texts, parts, strict=True)}
        new = [key for key, (text, _) in by_key.items() if key not in stored or key_of(text) not in stored]
        needed = {**dict.fromkeys(key_of(text) for text in texts), **by_key}
        if new:
            whole, second = encode_parts(self._sentences, *zip(*(by_key[key] for key in new), strict=True))
            if any(len(row) != whole.shape[1] for row in stored.values()):
                return encode_parts(self._sentences, texts, parts)
            stored |= dict(zip((key_of(by_key[key][0]) for key in new), whole, strict=True))
            stored |= dict(zip(new, second, strict=True))
            self._store({key: stored[key] for key in needed})
        if not texts:
            return encode_parts(self._sentences, texts, parts)
        return np.stack([stored[key_of(text)] for text in texts]), np.stack(
            [stored[key_of(*pair)] for pair in zip(texts, parts, strict=True)]
        )

    def _store(self, current: Mapping[bytes, Vectors]) -> None:
        """Replace the file. It keeps the vectors that another process has stored since it was read."""
        others = {key: row for key, row in _read(self.file).items() if key not in current}
        newest = dict(list(others.items())[:_MOST_OTHERS])
        try:
            _write(self.file, {**current, **newest})
        except OSError as error:
            log.info("vectors of utterances are not stored, so each start encodes all of them: %s", error)


def key_of(text: str, parts: Parts = ()) -> bytes:
    """Return the hash under which the vector of a text, or of parts of it, is stored."""
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_HASH_BYTES)
    digest.update(f"\0{parts}".encode() if parts else b"")
    return digest.digest()


def _read(file: Path) -> dict[bytes, Vectors]:
    """Return the vectors in `file` by the hash of their text, or none of them if the file is not whole."""
    arrays = read_arrays(file)
    keys, rows = arrays.get("keys"), arrays.get("vectors")
    if keys is None or rows is None or rows.dtype != np.float32:
        return {}
    if keys.dtype != np.uint8 or keys.shape != (len(rows), _HASH_BYTES):
        return {}
    return dict(zip(map(bytes, keys), rows, strict=True))


def _write(file: Path, vectors: Mapping[bytes, Vectors]) -> None:
    keys = np.frombuffer(b"".join(vectors), dtype=np.uint8).reshape(-1, _HASH_BYTES)
    replace_arrays(file, {"keys": keys, "vectors": np.stack(list(vectors.values()))})


def read_arrays(file: Path) -> dict[str, np.ndarray]:
    """Return the arrays in `file` by name, or none of them if the file is not whole."""
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return dict(arrays)
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile):
        return {}


def replace_arrays(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a new file and move it into place, so that no process reads a half-written one. Raises OSError."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=file.stem, suffix=".new")
    try:
        with os.fdopen(handle, "wb") as new:
            np.savez(new, **dict(arrays))  # type: ignore[arg-type]  # no array is called allow_pickle
            os.fchmod(new.fileno(), 0o644)  # serving may be another user
        os.replace(name, file)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
