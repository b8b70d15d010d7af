"""A cache on disk for arrays and models that take long to make, by a hash of their inputs."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from extproc.encoder.backends import ADAPTED_FILE, load_sentences, prepared_folder, read_choice
from extproc.encoder.parts import Parts, encode_parts
from extproc.encoder.prepare import prepare
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.fit import adapt
from extproc.routing import centroids, head
from extproc.routing.index import BACK

BASE = "all-MiniLM-L6-v2"
# About as many texts as `extproc prepare` would get from a folder of intents.
_PREPARED_ON = 600


class Cache:
    """A folder that is filled when something is first needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def array(self, key: str, make: Callable[[], Vectors]) -> Vectors:
        """The result of `make`, which is called once for each key."""
        path = self.folder / f"{_hash(key)}.npy"
        if not path.exists():
            array = make()
            unfinished = path.with_suffix(f".{os.getpid()}")
            with unfinished.open("wb") as file:
                np.save(file, array)
            unfinished.rename(path)
        loaded: Vectors = np.load(path)
        return loaded

    def adapted(self, utterances: Mapping[str, Sequence[str]]) -> Path:
        """A folder with the encoder adapted to `utterances`, prepared for this machine."""
        source = Path(adapt.__file__).read_text()
        folder = self.folder / f"adapted-{_hash(source + adapt.adaptation_digest(utterances))}"
        if not (folder / ADAPTED_FILE).exists():
            began = time.process_time()
            adapt.adapt(BASE, utterances, folder, time.strftime("%Y-%m-%d"))
            (folder / "seconds").write_text(f"{time.process_time() - began:.0f}")
        with self.prepared():
            if read_choice(str(folder)) is None:
                texts = [text for cohort_texts in utterances.values() for text in cohort_texts]
                step = max(1, len(texts) // _PREPARED_ON)
                prepare(str(folder), texts[::step], time.strftime("%Y-%m-%d"), threads=1)
        return folder

    @contextlib.contextmanager
    def prepared(self) -> Iterator[None]:
        """Inside this context, prepared models are stored in this cache."""
        before = os.environ.get("EXTPROC_PREPARED")
        os.environ["EXTPROC_PREPARED"] = str(self.folder / "prepared")
        try:
            yield
        finally:
            os.environ.pop("EXTPROC_PREPARED")
            if before is not None:
                os.environ["EXTPROC_PREPARED"] = before


class CachedEncoder:
    """The encoder that serves `model`. It is loaded only for texts that are not in the cache."""

    def __init__(self, cache: Cache, model: str = BASE) -> None:
        self._cache, self._model = cache, model
        self._encoder: Encoder | None = None

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d], each row of unit length."""
        return self._cached([*texts], lambda encoder: encoder.encode(texts))

    def encode_parts(self, texts: Sequence[str], parts: Sequence[Parts]) -> tuple[Vectors, Vectors]:
        """Return two float32[len(texts), d] with rows of unit length: of the texts, and of their parts."""
        key = [f"{spans} {text}" for text, spans in zip(texts, parts, strict=True)]
        whole, second = self._cached(key, lambda encoder: np.stack(encode_parts(encoder, texts, parts)))
        return whole, second

    def _cached(self, key: list[str], encode: Callable[[Encoder], Vectors]) -> Vectors:
        with contextlib.nullcontext() if self._model == BASE else self._cache.prepared():
            choice = read_choice(self._model)
            name = f"{prepared_folder(self._model).name} {choice.chosen.name if choice is not None else 'torch'}"
            return self._cache.array("\0".join([name, *key]), lambda: encode(self._load()))

    def _load(self) -> Encoder:
        if self._encoder is None:
            self._encoder = load_sentences(self._model, threads=1)
        return self._encoder


def means(rows: Vectors, labels: np.ndarray) -> Vectors:
    """float32[cohorts, d]: one unit centroid per label, in order of the labels."""
    names, member = np.unique(labels, return_inverse=True)
    return centroids.mean_directions(rows, member, len(names))


def fitted(cache: Cache, rows: Vectors, labels: np.ndarray, back: float = BACK) -> tuple[Vectors, Vectors]:
    """(centroids, reference vectors of the similarity): float32[cohorts, d] each, one row per label, in order."""

    def make() -> Vectors:
        names = np.unique(labels)
        cohorts = centroids.fit_centroids({str(name): rows[labels == name] for name in names}, back)
        return np.stack([[cohorts[str(name)].centroid, cohorts[str(name)].typical] for name in names], axis=1)

    source = Path(centroids.__file__).read_text()
    centroid, typical = cache.array(f"{source}{_digest(rows, labels)} {back}", make)
    return centroid, typical


def fitted_head(cache: Cache, rows: Vectors, labels: np.ndarray) -> tuple[Vectors, Vectors]:
    """(weights, bias) of the head without a background: float32[cohorts, d] and float32[cohorts], in order."""

    def make() -> Vectors:
        fit = head.fit_head({str(name): rows[labels == name] for name in np.unique(labels)})
        return np.column_stack([fit.weights, fit.bias])

    table = cache.array(f"{Path(head.__file__).read_text()}{_digest(rows, labels)}", make)
    return table[:, :-1], table[:, -1]


def _digest(rows: Vectors, labels: np.ndarray) -> str:
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes() + labels.astype(str).tobytes()).hexdigest()


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="surrogatepass")).hexdigest()[:16]
