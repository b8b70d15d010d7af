"""centroids.safetensors: centroids fitted on labelled rows, beside the YAML; `extproc calibrate` writes it.

Its header says what the centroids were fitted with. They are served as long as that holds; after an edit of any
utterance they say nothing of the intents as they are now, and serving goes back to the utterances (snapshot.py).
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from extproc.vectors import Vectors

CENTROIDS_FILE = "centroids.safetensors"
# What the values of a ConfigMap may be together (Kubernetes' own limit).
CONFIGMAP_BYTES = 1 << 20
_CALIBRATE = "run `extproc calibrate --write` again, or delete the file"
# Vectors of one text by the back ends of one model agree to 0.99 and better; by another model they do not.
_SAME_ENCODER = 0.98


class Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the centroids were fitted with."""

    kind: str
    date: str
    encoder: str  # its name
    utterances: str  # hash of the encoder's name and of all intents with their utterances
    data: str  # hash of the labelled rows
    rows: int  # of them that centroids were fitted on
    seed: int  # of the split: other rows than these had no part in it
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
    probe: Vectors  # float32[d]: the encoder's vector of the first utterance

    def stale(self, encoder: str, utterances: str, first: Vectors) -> str | None:
        """Why these are not the centroids of such intents, and what to do; None when they are.

        `first` is the vector of the first utterance, by the encoder that serves.
        """
        if self.header.encoder != encoder:
            why = f"it was fitted with the encoder {self.header.encoder}, not {encoder}"
        elif self.header.utterances != utterances:
            why = "utterances or encoder.max_chars changed since it was fitted"
        elif len(first) != len(self.probe) or float(first @ self.probe) < _SAME_ENCODER:
            why = "the encoder's weights are not those it was fitted with"
        else:
            return None
        return f"{CENTROIDS_FILE} is stale, centroids come from the utterances alone: {why}; {_CALIBRATE}"


def encode_centroids(
    header: Header, centroids: Mapping[str, Vectors], floors: Mapping[str, float], probe: Vectors
) -> bytes:
    """The file's bytes; the same for the same content. Half precision moves a similarity by 0.0001 at most."""
    arrays: dict[str, np.ndarray] = {
        "centroids": np.concatenate([centroids[name] for name in header.cohorts]).astype(np.float16),
        "floors": np.array([floors[name] for name in header.cohorts], dtype=np.float32),
        "probe": probe.astype(np.float16),
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
    shapes = {name: array.shape for name, array in arrays.items()}
    dimensions = arrays["probe"].shape[-1:] if "probe" in arrays else ()
    wanted = {"centroids": (sum(counts), *dimensions), "floors": (len(counts),), "probe": dimensions}
    if shapes != wanted or not counts or min(counts) < 1:
        raise ValueError(f"its arrays are not those its header speaks of: {_CALIBRATE}")
    if header.seal != _seal(header, arrays):
        raise ValueError(f"its content is not what `extproc calibrate` wrote: {_CALIBRATE}")
    centroids = np.split(arrays["centroids"].astype(np.float32), np.cumsum(counts)[:-1])
    return CentroidFile(
        header,
        dict(zip(header.cohorts, centroids, strict=True)),
        dict(zip(header.cohorts, map(float, arrays["floors"]), strict=True)),
        arrays["probe"].astype(np.float32),
    )


def in_configmap(folder: Path, raw: bytes) -> str:
    """How much of what a ConfigMap holds the YAML and these bytes of the file are, in words."""
    size = len(raw) + sum(path.stat().st_size for path in folder.glob("*.y*ml") if path.is_file())
    told = f"{size / 1024:,.0f} KiB with the YAML"
    return told if size <= CONFIGMAP_BYTES else f"{told}: a ConfigMap holds 1,024 KiB, MOUNT A VOLUME INSTEAD"


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
