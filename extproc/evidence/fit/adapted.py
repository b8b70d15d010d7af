"""The folders of adapted encoders, named by the hash of their weights."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from extproc.encoder.backends import ADAPTED_FILE
from extproc.evidence.fit.adapt import ADAPTED_BACK, Adaptation, adapt, adaptation_digest
from extproc.routing.index import BACK


def adapted_encoder(model: str, texts: Mapping[str, Sequence[str]], into: Path, date: str) -> Path:
    """Return the folder in `into` with `model` adapted to cohort -> texts. It is made, in minutes, if it is
    missing.

    If `model` is an adapted encoder, the model that it was made from is adapted instead. Raises EncoderError or
    OSError.
    """
    record = _adaptation(Path(model))
    origin = model if record is None else record.model
    into.mkdir(parents=True, exist_ok=True)
    for path in sorted(into.iterdir()):
        record = _adaptation(path)
        if record is not None and (record.model, record.data) == (origin, adaptation_digest(texts)):
            return path
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as beside:
        new = Path(beside) / "new"
        adapt(origin, texts, new, date)
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(new.rglob("*.safetensors"))))
        named = into / f"{Path(origin).name}-{digest.hexdigest()[:12]}"
        return named if named.exists() else new.rename(named)


def back_of(model: str) -> float:
    """Return `back` for this encoder: how far from a centroid to its mean similarity is measured."""
    return BACK if _adaptation(Path(model)) is None else ADAPTED_BACK


def _adaptation(folder: Path) -> Adaptation | None:
    """Return the record of an adapted encoder, or None for any other folder."""
    try:
        return msgspec.json.decode((folder / ADAPTED_FILE).read_bytes(), type=Adaptation)
    except (OSError, msgspec.DecodeError):
        return None
