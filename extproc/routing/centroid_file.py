"""centroids.safetensors: centroids fitted on labelled rows, beside the YAML; `extproc calibrate` writes it.

Its header says what the centroids were fitted with. They are served as long as that holds; after an edit of any
utterance they say nothing of the intents as they are now, and serving goes back to the utterances (snapshot.py).
"""

import hashlib
from collections.abc import Mapping

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from extproc.encoder.protocols import Vectors

CENTROIDS_FILE = "centroids.safetensors"
_CALIBRATE = "run `extproc calibrate --write` again, or delete the file"
# By int8 and fp32 of one model, similarities of utterances differ by 0.0045 (root mean square; sample intents and
# CLINC150's); by the same model adapted to other intents by 0.03, to these by 0.08.
_SAME_ENCODER = 0.015


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the centroids were fitted with."""

    kind: str
    date: str
    encoder: str  # its name
    utterances: str  # hash of the encoder's name and of all intents with their utterances
    data: str  # hash of the labelled rows
    rows: int  # of them that centroids were fitted on
    seed: int  # of the split: other rows than these had no part in it
    back: float  # part of the way from a centroid to its cohort's mean that similarity is measured at
    cohorts: dict[str, int]  # in order, with how many centroids each has
    seal: str = ""  # hash of the arrays and of all above

    def __str__(self) -> str:
        count = sum(self.cohorts.values())
        return (
            f"{self.kind}, {count} centroids of {len(self.cohorts)} cohorts, by {self.rows} rows of {self.data}, "
            f"{self.date}"
        )


class CentroidFile(msgspec.Struct, frozen=True, eq=False):
    """The file's content."""

    header: Header
    centroids: Mapping[str, Vectors]  # cohort -> float32[n, d], unit vectors
    floors: Mapping[str, float]  # for cohorts that no file of an intent gives one
    probe: Vectors  # float32[n]: the similarity of each utterance to the next, by the encoder

    def stale(self, encoder: str, utterances: str, rows: Vectors) -> str | None:
        """Why these are not the centroids of such intents, and what to do; None when they are.

        `rows`: float32[n, d], the vectors of all utterances, by the encoder that serves.
        """
        if self.header.encoder != encoder:
            why = f"it was fitted with the encoder {self.header.encoder}, not {encoder}"
        elif self.header.utterances != utterances:
            why = "utterances or encoder.max_chars changed since it was fitted"
        elif not self._made_by(rows):
            why = "the encoder's weights are not those it was fitted with"
        else:
            return None
        return f"{CENTROIDS_FILE} is stale, centroids come from the utterances alone: {why}; {_CALIBRATE}"

    def _made_by(self, rows: Vectors) -> bool:
        same = next(iter(self.centroids.values())).shape[1] == rows.shape[1] and len(self.probe) == len(rows) - 1
        return same and float(np.sqrt(np.mean((neighbours(rows) - self.probe) ** 2))) < _SAME_ENCODER


def neighbours(rows: Vectors) -> Vectors:
    """float32[n - 1]: the similarity of each row to the next; it tells encoders apart in little room."""
    found: Vectors = (rows[1:] * rows[:-1]).sum(axis=1)
    return found


def encode_centroids(
    header: Header, centroids: Mapping[str, Vectors], floors: Mapping[str, float], rows: Vectors
) -> bytes:
    """The file's bytes, the same for the same content; `rows`: the vectors of all utterances, in order."""
    arrays: dict[str, np.ndarray] = {
        "centroids": np.concatenate([centroids[name] for name in header.cohorts]).astype(np.float16),
        "floors": np.array([floors[name] for name in header.cohorts], dtype=np.float32),
        "probe": neighbours(rows).astype(np.float32),
    }
    sealed = msgspec.structs.replace(header, seal=_seal(header, arrays))
    return bytes(save(arrays, metadata={"header": msgspec.json.encode(sealed).decode()}))


def decode_centroids(raw: bytes) -> CentroidFile:
    """The content of the file. Raises ValueError, which says what to do, for anything but a sound one."""
    try:
        arrays = load(raw)
        header = msgspec.json.decode(_metadata(raw), type=Header)
    except (SafetensorError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise ValueError(f"is no file of centroids ({error}): {_CALIBRATE}") from error
    counts = list(header.cohorts.values())
    shapes = {name: (len(array.shape), *array.shape[:1]) for name, array in arrays.items()}
    known = {"centroids": (2, sum(counts)), "floors": (1, len(counts)), "probe": shapes.get("probe")}
    if shapes != known or known["probe"] is None or arrays["probe"].ndim != 1 or not counts or min(counts) < 1:
        raise ValueError(f"its arrays are not those its header speaks of: {_CALIBRATE}")
    if header.seal != _seal(header, arrays):
        raise ValueError(f"its content is not what `extproc calibrate` wrote: {_CALIBRATE}")
    centroids = np.split(arrays["centroids"].astype(np.float32), np.cumsum(counts)[:-1])
    return CentroidFile(
        header,
        dict(zip(header.cohorts, centroids, strict=True)),
        dict(zip(header.cohorts, map(float, arrays["floors"]), strict=True)),
        arrays["probe"],
    )


def _metadata(raw: bytes) -> str:
    """The header among the metadata, which begin eight bytes in; the library has shown that they are sound."""
    length = int.from_bytes(raw[:8], "little")
    found: str = msgspec.json.decode(raw[8 : 8 + length])["__metadata__"]["header"]
    return found


def _seal(header: Header, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, seal="")))
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return digest.hexdigest()[:12]
