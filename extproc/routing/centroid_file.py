"""centroids.safetensors, in the folder of the YAML: the result of `extproc calibrate` on labelled rows.

It has the centroids of the cohorts and of the background, and the head if the kind is one. The header names the
encoder and utterances that they were fitted with. They are used as long as both are the same. After a change of an
utterance, matching is fitted from the utterances alone (config/compile.py).
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from extproc.encoder.protocols import Vectors
from extproc.routing.head import Head

CENTROIDS_FILE = "centroids.safetensors"
_CALIBRATE = "run `extproc calibrate --write` again, or delete the file"
# `calibrate` reads the folder, too, so a file that is refused has to go first.
_AGAIN = "delete the file, and run `extproc calibrate --write` again"
# Largest root mean square difference between similarities of utterances by one encoder. Measured on the sample
# intents and CLINC150: 0.0045 between int8 and fp32 of one model. A model adapted to other intents differs from the
# original by 0.03, and one adapted to the same intents by 0.08.
_SAME_ENCODER = 0.015


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs and settings of the fit."""

    kind: str
    date: str
    encoder: str  # name of the encoder
    utterances: str  # hash of the encoder's name and of all intents with their utterances
    data: str  # hash of the labelled rows
    rows: int  # number of rows that the centroids were fitted on
    seed: int  # of the split into rows for the fit and held-out rows
    back: float  # weight of the mean in the similarity
    cohorts: dict[str, int]  # number of centroids of each cohort, in order
    seal: str = ""  # hash of the arrays and of all fields above

    def __str__(self) -> str:
        count = sum(self.cohorts.values())
        return (
            f"{self.kind}, {count} centroids of {len(self.cohorts)} cohorts, by {self.rows} rows of {self.data}, "
            f"{self.date}"
        )


class Matcher(msgspec.Struct, frozen=True, eq=False):
    """The values that find the cohort of a vector."""

    centroids: Mapping[str, Vectors]  # cohort -> float32[n, d], unit vectors
    background: Vectors | None = None  # float32[n, d], unit vectors: centroids of the background
    head: Head | None = None  # it decides instead of the centroids


class CentroidFile(msgspec.Struct, frozen=True, eq=False):
    """The content of the file."""

    header: Header
    matcher: Matcher
    floors: Mapping[str, float]  # for cohorts whose intent sets no floor
    probe: Vectors  # float32[n]: similarity of each utterance to the next one, which identifies the encoder
    seen: np.ndarray  # uint32[m], `fingerprints` of the rows that it was fitted on

    def stale(self, encoder: str, utterances: str, rows: Vectors) -> str | None:
        """Return why these centroids are not valid for the intents and what to do, or None if they are valid.

        `rows` are the vectors of all utterances by the current encoder, float32[n, d].
        """
        if self.header.encoder != encoder:
            why = f"it was fitted with the encoder {self.header.encoder}, not {encoder}"
        elif self.header.utterances != utterances:
            why = "utterances or encoder.max_chars changed since it was fitted"
        elif not self._fits_encoder(rows):
            why = "it was fitted with other weights of the encoder"
        else:
            return None
        return f"{CENTROIDS_FILE} is stale, centroids come from the utterances alone: {why}; {_CALIBRATE}"

    def _fits_encoder(self, rows: Vectors) -> bool:
        if (
            next(iter(self.matcher.centroids.values())).shape[1] != rows.shape[1]
            or len(self.probe) != len(rows) - 1
        ):
            return False
        return float(np.sqrt(np.mean((probe_of(rows) - self.probe) ** 2))) < _SAME_ENCODER


def probe_of(rows: Vectors) -> Vectors:
    """Return the similarity of each row to the next one, float32[n - 1]: a short fingerprint of the encoder."""
    similarities: Vectors = (rows[1:] * rows[:-1]).sum(axis=1)
    return similarities


def encode_centroids(
    header: Header, matcher: Matcher, floors: Mapping[str, float], rows: Vectors, texts: Iterable[str] = ()
) -> bytes:
    """Return the bytes of the file. Deterministic.

    `rows` are the vectors of all utterances, in order, and `texts` are the rows that were fitted on.
    """
    arrays: dict[str, np.ndarray] = {
        "centroids": np.concatenate([matcher.centroids[name] for name in header.cohorts]).astype(np.float16),
        "floors": np.array([floors[name] for name in header.cohorts], dtype=np.float32),
        "probe": probe_of(rows).astype(np.float32),
        "seen": np.unique(fingerprints(texts)),
    }
    if matcher.background is not None:
        arrays["outside"] = matcher.background.astype(np.float16)
    if matcher.head is not None:
        arrays["weights"], arrays["bias"] = matcher.head.weights.astype(np.float16), matcher.head.bias
    sealed = msgspec.structs.replace(header, seal=_seal(header, arrays))
    return bytes(save(arrays, metadata={"header": msgspec.json.encode(sealed).decode()}))


def decode_centroids(raw: bytes) -> CentroidFile:
    """Return the content of the file. Raises ValueError, which says what to do, if the file is not valid."""
    try:
        arrays = load(raw)
        header = msgspec.json.decode(metadata_header(raw), type=Header)
    except (SafetensorError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise ValueError(f"is not a centroid file ({error}): {_AGAIN}") from error
    counts = list(header.cohorts.values())
    if not _has_shapes(arrays, counts):
        raise ValueError(f"its arrays do not have the shapes that its header describes: {_AGAIN}")
    if header.seal != _seal(header, arrays):
        raise ValueError(f"its content changed after `extproc calibrate` wrote it: {_AGAIN}")
    centroids = np.split(arrays["centroids"].astype(np.float32), np.cumsum(counts)[:-1])
    background, weights = (
        arrays[name].astype(np.float32) if name in arrays else None for name in ("outside", "weights")
    )
    head = Head(weights, arrays["bias"]) if weights is not None else None
    return CentroidFile(
        header,
        Matcher(dict(zip(header.cohorts, centroids, strict=True)), background, head),
        dict(zip(header.cohorts, map(float, arrays["floors"]), strict=True)),
        arrays["probe"],
        arrays["seen"],
    )


def _has_shapes(arrays: Mapping[str, np.ndarray], counts: Sequence[int]) -> bool:
    """Whether the arrays have the shapes that these numbers of centroids require."""
    names, always = {*arrays}, {"centroids", "floors", "probe", "seen"}
    if names - always not in (set(), {"outside"}, {"weights", "bias"}) or not always <= names:
        return False
    centroids, floors = arrays["centroids"], arrays["floors"]
    if not counts or min(counts) < 1 or centroids.ndim != 2 or floors.shape != (len(counts),):
        return False
    vectors = [arrays[name] for name in ("outside", "weights") if name in names]
    return (
        len(centroids) == sum(counts)
        and arrays["probe"].ndim == arrays["seen"].ndim == 1
        and all(rows.ndim == 2 and len(rows) for rows in vectors)
        and ("weights" not in names or _is_head(arrays["weights"], arrays["bias"], len(counts)))
    )


def _is_head(weights: np.ndarray, bias: np.ndarray, cohorts: int) -> bool:
    """Whether the head has a class for each cohort, and perhaps one for the background."""
    return len(weights) - cohorts in (0, 1) and bias.shape == (len(weights),)


def fingerprints(texts: Iterable[str]) -> np.ndarray:
    """Return uint32[n]: a short hash of each text, without its case and spaces."""
    digests = [hashlib.blake2b(" ".join(t.lower().split()).encode(), digest_size=4).digest() for t in texts]
    return np.frombuffer(b"".join(digests), dtype="<u4")


def metadata_header(raw: bytes) -> str:
    """The header, from the metadata at byte 8. The library has already checked that the metadata are valid."""
    length = int.from_bytes(raw[:8], "little")
    header: str = msgspec.json.decode(raw[8 : 8 + length])["__metadata__"]["header"]
    return header


def _seal(header: Header, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(msgspec.json.encode(msgspec.structs.replace(header, seal="")))
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return digest.hexdigest()[:12]
