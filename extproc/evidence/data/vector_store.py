"""Vectors of texts on disk, in half precision: a command that is started again encodes only the texts that are new.

A store is one SQLite file. It has the hash of each text and its vector, and no text. Vectors reveal what a text is
about, so only its owner can read the file.
"""

import logging
import os
import sqlite3
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from extproc.encoder.parts import Parts, encode_parts
from extproc.encoder.protocols import Encoder, Vectors
from extproc.encoder.vector_file import key_of

log = logging.getLogger(__name__)

_BUSY_S = 60.0  # another command writes for this long at most
_TABLE = "CREATE TABLE IF NOT EXISTS vectors (key BLOB NOT NULL UNIQUE, vector BLOB NOT NULL)"


def store_for(name: str) -> "VectorStore":
    """Return the store with this name in $XDG_CACHE_HOME, by default ~/.cache. Without a home it is temporary."""
    cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    if cache.startswith("~"):
        return TemporaryStore()
    return VectorStore(Path(cache) / "envoy-semantic-router" / "vectors" / f"{name}.sqlite")


class VectorStore:
    """A file of vectors. If it cannot be used, nothing is stored, which costs time and nothing else."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._database: sqlite3.Connection | None = None
        try:
            file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.close(os.open(file, os.O_CREAT | os.O_RDWR, 0o600))
            self._database = sqlite3.connect(file, timeout=_BUSY_S, isolation_level=None)
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = OFF")  # a lost vector is encoded again
            self._database.execute(_TABLE)
        except (OSError, sqlite3.Error) as error:
            self._give_up(error)

    def read(self, keys: Sequence[bytes], size: int | None = None) -> dict[bytes, Vectors]:
        """Return the stored vectors of these keys, as float32. `size`: leave out those of another size."""
        if self._database is None or not keys:
            return {}
        try:
            places = ",".join("?" * len(keys))
            rows = self._database.execute(
                f"SELECT key, vector FROM vectors WHERE key IN ({places})", keys
            ).fetchall()
        except sqlite3.Error as error:
            self._give_up(error)
            return {}
        vectors = {key: np.frombuffer(vector, dtype=np.float16).astype(np.float32) for key, vector in rows}
        return {key: vector for key, vector in vectors.items() if size is None or len(vector) == size}

    def write(self, vectors: Mapping[bytes, Vectors]) -> None:
        """Store vectors. After this a process that ends loses none of them."""
        if self._database is None:
            return
        rows = [(key, vector.astype(np.float16).tobytes()) for key, vector in vectors.items()]
        try:
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT OR REPLACE INTO vectors VALUES (?, ?)", rows)
            self._database.execute("COMMIT")
        except sqlite3.Error as error:
            self._give_up(error)

    def close(self) -> None:
        """Close the file."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def _give_up(self, error: Exception) -> None:
        log.warning(
            "%s cannot be used, so texts are encoded again when they are needed again (%s): free some space, "
            "delete this file, or set XDG_CACHE_HOME to a folder that can be written", self._file, error
        )  # fmt: skip
        self.close()


class TemporaryStore(VectorStore):
    """A store for one command."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="extproc-vectors-", ignore_cleanup_errors=True)
        super().__init__(Path(self._folder.name) / "vectors.sqlite")

    def close(self) -> None:
        """Delete the file."""
        super().close()
        self._folder.cleanup()


class StoredVectors:
    """An encoder whose vectors are kept in a store. Each vector has half precision, also when it is new."""

    def __init__(self, encoder: Encoder, store: VectorStore) -> None:
        self.encoder, self.store = encoder, store
        self.encoded = 0  # texts that were not in the store
        self._size: int | None = None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length, except for rounding."""
        return self.encode_parts(texts, [()] * len(texts))[0]

    def encode_parts(self, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(texts), d] with rows of unit length, except for rounding: of texts, and of parts.

        Both are made as the encoder makes them when it serves, such as in one pass.
        """
        if not texts:
            return encode_parts(self.encoder, texts, parts)
        by_key = {key_of(*pair): pair for pair in zip(texts, parts, strict=True)}
        needed = list(dict.fromkeys([*(key_of(text) for text in texts), *by_key]))
        vectors = self.store.read(needed, self._size)
        if new := [key for key, (text, _) in by_key.items() if not {key, key_of(text)} <= vectors.keys()]:
            rows = encode_parts(self.encoder, *zip(*(by_key[key] for key in new), strict=True))
            whole, second = (each.astype(np.float16).astype(np.float32) for each in rows)
            self.encoded += len(new)
            self._size = whole.shape[1]
            vectors = {key: row for key, row in vectors.items() if len(row) == self._size}
            fresh = dict(zip((key_of(by_key[key][0]) for key in new), whole, strict=True))
            fresh |= zip(new, second, strict=True)
            self.store.write(fresh)
            vectors |= fresh
            if not vectors.keys() >= set(needed):  # the file has vectors of another size
                return self.encode_parts(texts, parts)
        pairs = zip(texts, parts, strict=True)
        return np.stack([vectors[key_of(text)] for text in texts]), np.stack([vectors[key_of(*p)] for p in pairs])
