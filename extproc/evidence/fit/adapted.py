"""Where adapted encoders are kept: folders beside each other, named by the hash of their weights."""

import hashlib
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from extproc.encoder.backends import ADAPTED_FILE
from extproc.evidence.fit.adapt import ADAPTED_BACK, Adaptation, adapt, adaptation_digest
from extproc.routing.index import BACK


def adapted_encoder(model: str, texts: Mapping[str, Sequence[str]], into: Path, date: str) -> Path:
    """The folder in `into` with `model` adapted to `cohort -> texts`; made, in minutes, unless it is there.

    An adapted encoder is not adapted again: what it was made from is. Raises EncoderError or OSError.
    """
    stamp = _stamp(Path(model))
    origin = model if stamp is None else stamp.model
    into.mkdir(parents=True, exist_ok=True)
    for path in sorted(into.iterdir()):
        stamp = _stamp(path)
        if stamp is not None and (stamp.model, stamp.data) == (origin, adaptation_digest(texts)):
            return path
    with tempfile.TemporaryDirectory(dir=into, prefix=".") as beside:
        made = Path(beside) / "made"
        adapt(origin, texts, made, date)
        digest = hashlib.sha256(b"".join(path.read_bytes() for path in sorted(made.rglob("*.safetensors"))))
        kept = into / f"{Path(origin).name}-{digest.hexdigest()[:12]}"
        return kept if kept.exists() else made.rename(kept)


def back_of(model: str) -> float:
    """The part of the way back to a cohort's mean that similarity by this encoder is best measured at."""
    return BACK if _stamp(Path(model)) is None else ADAPTED_BACK


def _stamp(folder: Path) -> Adaptation | None:
    """What an adapted encoder was made of; None for any other folder."""
    try:
        return msgspec.json.decode((folder / ADAPTED_FILE).read_bytes(), type=Adaptation)
    except (OSError, msgspec.DecodeError):
        return None
