"""The fits on the utterances, on disk: a start or a reload fits only what is new.

The files are in the folder of the prepared encoder, beside the vectors of utterances. A file that is missing or
damaged, or that cannot be written, costs time and nothing else.
"""

import hashlib
import inspect
import logging
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from extproc.encoder.protocols import Vectors
from extproc.encoder.vector_file import read_arrays, replace_arrays
from extproc.routing import centroids, head
from extproc.routing.centroids import Fitted, fit_centroids
from extproc.routing.head import Head, fit_head

log = logging.getLogger(__name__)

# Files in the folder. Several configurations may share one encoder, and an edit may be taken back.
_MOST_FILES = 8


def fit_once(
    utterances: Mapping[str, Vectors], background: Vectors | None, folder: Path | None
) -> tuple[dict[str, Fitted], Head]:
    """Return the centroids and the head as `fit_centroids` and `fit_head` do, from `folder` if they are there.

    Otherwise fit them, and store them in `folder` if there is one.
    """
    file = folder / f"fit-{_key(utterances, background)}.npz" if folder is not None else None
    stored = _read(file, utterances) if file is not None else None
    if stored is not None:
        return stored
    cohorts, chances = fit_centroids(utterances), fit_head(utterances, background)
    if file is not None:
        _store(file, cohorts, chances)
    return cohorts, chances


def _key(utterances: Mapping[str, Vectors], background: Vectors | None) -> str:
    """The hash of everything that the fit depends on, the code included."""
    digest = hashlib.sha256("".join(map(inspect.getsource, (centroids, head))).encode())
    for name, rows in [*utterances.items(), *([("", background)] if background is not None else [])]:
        digest.update(f"{name!r} {rows.dtype} {rows.shape}".encode())
        digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()[:32]


def _read(file: Path, utterances: Mapping[str, Vectors]) -> tuple[dict[str, Fitted], Head] | None:
    arrays = read_arrays(file)
    if not {"centroids", "means", "floors", "weights", "bias"} <= arrays.keys():
        return None
    rows = zip(arrays["centroids"], arrays["means"], map(float, arrays["floors"]), strict=True)
    cohorts = {name: Fitted(*row) for name, row in zip(utterances, rows, strict=True)}
    return cohorts, Head(arrays["weights"], arrays["bias"])


def _store(file: Path, cohorts: Mapping[str, Fitted], chances: Head) -> None:
    arrays: dict[str, np.ndarray] = {
        "centroids": np.stack([cohort.centroid for cohort in cohorts.values()]),
        "means": np.stack([cohort.mean for cohort in cohorts.values()]),
        "floors": np.array([cohort.floor for cohort in cohorts.values()], dtype=np.float64),
        "weights": chances.weights,
        "bias": chances.bias,
    }
    try:
        replace_arrays(file, arrays)
        files = sorted(file.parent.glob("fit-*.npz"), key=lambda path: path.stat().st_mtime)
        for old in files[:-_MOST_FILES]:
            old.unlink(missing_ok=True)
    except OSError as error:
        log.info("the fit on the utterances is not stored, so each start repeats it: %s", error)
