"""Arrays and models that took long to make, kept in .cache/ by a hash of what they were made from."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from extproc.encoder.backends import ADAPTED_FILE, load_sentences, prepared_folder, read_choice
from extproc.encoder.prepare import prepare
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.fit import adapt
from extproc.routing import centroids
from extproc.routing.index import BACK

BASE = "all-MiniLM-L6-v2"
# Of the utterances, as many as `extproc prepare` would see of a folder of intents.
_PREPARED_ON = 600


class Kept:
    """The folder; an empty one is filled on the way."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, key: str, make: Callable[[], Vectors]) -> Vectors:
        """What `make` returns, made once for each key."""
        path = self.folder / f"{_hash(key)}.npy"
        if not path.exists():
            made = make()
            unfinished = path.with_suffix(f".{os.getpid()}")
            with unfinished.open("wb") as file:
                np.save(file, made)
            unfinished.rename(path)
        found: Vectors = np.load(path)
        return found

    def adapted(self, utterances: Mapping[str, Sequence[str]]) -> Path:
        """A folder with the encoder adapted to `utterances`, converted for this machine."""
        made_by = Path(adapt.__file__).read_text()
        folder = self.folder / f"adapted-{_hash(made_by + adapt.adaptation_digest(utterances))}"
        if not (folder / ADAPTED_FILE).exists():
            began = time.process_time()
            adapt.adapt(BASE, utterances, folder, time.strftime("%Y-%m-%d"))
            (folder / "seconds").write_text(f"{time.process_time() - began:.0f}")
        with self.prepared():
            if read_choice(str(folder)) is None:
                texts = [text for some in utterances.values() for text in some]
                step = max(1, len(texts) // _PREPARED_ON)
                prepare(str(folder), texts[::step], time.strftime("%Y-%m-%d"), threads=1)
        return folder

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Where what is prepared for adapted models is looked for meanwhile."""
        before = os.environ.get("EXTPROC_PREPARED")
        os.environ["EXTPROC_PREPARED"] = str(self.folder / "prepared")
        try:
            yield
        finally:
            os.environ.pop("EXTPROC_PREPARED")
            if before is not None:
                os.environ["EXTPROC_PREPARED"] = before


class KeptEncoder:
    """The encoder that serves `model`, loaded only for texts that it has not seen."""

    def __init__(self, kept: Kept, model: str = BASE) -> None:
        self._kept, self._model = kept, model
        self._encoder: Encoder | None = None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        with contextlib.nullcontext() if self._model == BASE else self._kept.prepared():
            choice = read_choice(self._model)
            name = f"{prepared_folder(self._model).name} {choice.chosen.name if choice is not None else 'torch'}"
            return self._kept.array("\0".join([name, *texts]), lambda: self._load().encode(texts))

    def _load(self) -> Encoder:
        if self._encoder is None:
            self._encoder = load_sentences(self._model, threads=1)
        return self._encoder


def means(rows: Vectors, labels: np.ndarray) -> Vectors:
    """float32[cohorts, d]: one unit centroid a label, in order."""
    names, member = np.unique(labels, return_inverse=True)
    return centroids.mean_directions(rows, member, len(names))


def fitted(kept: Kept, rows: Vectors, labels: np.ndarray, back: float = BACK) -> tuple[Vectors, Vectors]:
    """Two float32[cohorts, d], one row a label, in order: the centroids that serve, and what similarity is to."""

    def make() -> Vectors:
        names = np.unique(labels)
        found = centroids.fit_centroids({str(name): rows[labels == name] for name in names}, back)
        return np.stack([[found[str(name)].centroid, found[str(name)].typical] for name in names], axis=1)

    source = Path(centroids.__file__).read_text()
    data = hashlib.sha256(np.ascontiguousarray(rows).tobytes() + labels.astype(str).tobytes()).hexdigest()
    centroid, typical = kept.array(f"{source}{data} {back}", make)
    return centroid, typical


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]
