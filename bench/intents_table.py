"""CLINC150: accuracy in scope, recall out of scope, and floors that keep a stated risk."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from scipy import stats

from bench.cache import Cache, CachedEncoder, fitted, fitted_head, means
from extproc.encoder.backends import TorchSentences, read_choice
from extproc.encoder.features import WORDS_WEIGHT, FeatureEncoder
from extproc.encoder.protocols import Vectors
from extproc.evidence.fit.adapt import ADAPTED_BACK, ADAPTED_WORDS
from extproc.evidence.measure.metrics import (
    Bools,
    Estimate,
    Floats,
    auroc_estimate,
    mean,
    recall_at_rejection,
    spread,
)
from extproc.routing.index import BACK

SHOTS = 10
_INTENTS, _LEFT_OUT = 150, 30
_FEW, _ALL = f"{SHOTS} utterances per intent", "all utterances per intent"
_NEAR = f"{SHOTS} utterances of {_INTENTS - _LEFT_OUT} intents; out of scope: texts of the other {_LEFT_OUT}"
# CLINC150 has no tiers. Intents are assigned to this many tiers in turn, by name.
_TIERS = 3
_RISK, _RESAMPLES, _OUTSIDE = 0.05, 200, 0.1
_FIT_ROWS, _TRIED_ROWS = 1500, 3000


class Clinc(msgspec.Struct, frozen=True):
    """The data set. Labels are indices into `intents`. -1 is out of scope."""

    intents: tuple[str, ...]
    train: dict[str, list[str]]
    val: list[str]
    val_labels: np.ndarray
    test: list[str]
    test_labels: np.ndarray


def read_clinc(path: Path, shots: int | None, seed: int) -> Clinc:
    """Read it. With `shots`, use this many utterances of each intent, drawn at random."""
    with gzip.open(path) as lines:
        rows = [msgspec.json.decode(line) for line in lines]
    intents = tuple(sorted({row["intent"] for row in rows} - {"oos"}))
    train: dict[str, list[str]] = {name: [] for name in intents}
    utterances = [row for row in rows if row["split"] == "train" and row["intent"] != "oos"]
    for i in np.random.default_rng(seed).permutation(len(utterances)):
        if shots is None or len(train[utterances[i]["intent"]]) < shots:
            train[utterances[i]["intent"]].append(utterances[i]["text"])
    index_of = {name: i for i, name in enumerate(intents)}

    def part(name: str) -> tuple[list[str], np.ndarray]:
        split = [row for row in rows if row["split"] == name]
        return [row["text"] for row in split], np.array([index_of.get(row["intent"], -1) for row in split])

    return Clinc(intents, train, *part("val"), *part("test"))


def table(cache: Cache, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, each as soon as it is ready."""
    head = ("accuracy % [95 %]", "AUROC % [95 %]", "found out of scope % [95 %]")
    yield f"{'':<59}{head[0]:<20}{head[1]:<20}{head[2]}"
    controlled: list[str] = []
    for title, data in settings(path, seed).items():
        yield title
        for name, matches in ways(cache, data).items():
            if title == _NEAR and not name.endswith((_FITTED, _OWN, _SERVED)):
                continue
            cells = (f"{estimate:<20}" for estimate in _measured(matches, data.test_labels, seed))
            yield f"  {name:<57}" + "".join(cells).rstrip()
            if name in _CONTROLLED and title == _FEW:
                labels = np.concatenate([data.val_labels, data.test_labels])
                controlled += _controlled(name, matches, labels, seed)
    yield int8_against_fp32(cache, path, seed)
    yield ""
    yield from controlled


def adapt_encoders(folder: Path, path: Path, seed: int) -> None:
    """Adapt the encoders, which is the slowest part of the table."""
    for data in settings(path, seed).values():
        Cache(folder).adapted(data.train)


def settings(path: Path, seed: int) -> dict[str, Clinc]:
    """Title -> the data of each part of the table."""
    few = read_clinc(path, SHOTS, seed)
    return {_FEW: few, _NEAR: left_out(few, seed), _ALL: read_clinc(path, None, seed)}


def left_out(data: Clinc, seed: int) -> Clinc:
    """A part of the intents. The texts of the others, and no other texts, are out of scope."""
    rng = np.random.default_rng(seed)
    chosen = np.sort(rng.permutation(len(data.intents))[_LEFT_OUT:])
    names = tuple(data.intents[i] for i in chosen)
    new_label = np.full(len(data.intents), -1)
    new_label[chosen] = np.arange(len(chosen))

    def part(texts: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [text for text, label in zip(texts, labels, strict=True) if label >= 0], new_label[
            labels[labels >= 0]
        ]

    train = {name: data.train[name] for name in names}
    return Clinc(names, train, *part(data.val, data.val_labels), *part(data.test, data.test_labels))


class Matched(msgspec.Struct, frozen=True):
    """The match of each text of val and test."""

    cohort: np.ndarray  # the nearest cohort
    similarity: Floats  # with that cohort


def ways(cache: Cache, data: Clinc) -> dict[str, Matched]:
    """The matches of val and test for each way of matching, by its name."""
    labels = np.repeat(np.arange(len(data.intents)), [len(texts) for texts in data.train.values()])
    utterances = [text for texts in data.train.values() for text in texts]
    requests = [*data.val, *data.test]
    matches: dict[str, Matched] = {}
    views: list[View] = []
    for adapted in ("", "adapted, "):
        sentences = CachedEncoder(cache, str(cache.adapted(data.train))) if adapted else CachedEncoder(cache)
        rows, queries = sentences.encode(utterances), sentences.encode(requests)
        back = ADAPTED_BACK if adapted else BACK
        mean, (centroids, typical) = means(rows, labels), fitted(cache, rows, labels, back)
        matches[f"{adapted}mean centroid"] = matched((queries, mean, mean))
        matches[f"{adapted}fitted centroids"] = matched((queries, centroids, typical))
        encoder = FeatureEncoder(sentences, ADAPTED_WORDS if adapted else WORDS_WEIGHT)
        queries = encoder.encode(requests)
        utterance_rows = encoder.encode(utterances)
        centroids, typical = fitted(cache, utterance_rows, labels, back)
        views.append((queries, centroids, typical))
        matches[f"{adapted}{_FITTED}"] = matched(views[-1])
        matches[f"{adapted}{_OWN}"] = matched((queries, centroids, centroids))
        weights, bias = fitted_head(cache, utterance_rows, labels)
        matches[f"{adapted}{_SERVED}"] = compared((queries @ weights.T + bias).argmax(axis=1), (queries, typical))
    matches["two encoders: adapted + frozen, averaged"] = matched(*views)
    return matches


View = tuple[Vectors, Vectors, Vectors]
_FITTED = "fitted, ends and words"
_OWN = "the same, similarity to the centroid itself"
_SERVED = "as served without labels: head, ends and words"
_CONTROLLED = (_FITTED, f"adapted, {_FITTED}")


def matched(*views: View) -> Matched:
    """Match by views (queries, centroids, references of the similarity). Several views are averaged."""
    nearest = np.sum([queries @ centroids.T for queries, centroids, _ in views], axis=0).argmax(axis=1)
    return compared(nearest, *((queries, typical) for queries, _, typical in views))


def compared(nearest: np.ndarray, *views: tuple[Vectors, Vectors]) -> Matched:
    """These cohorts are the nearest. Their similarity is that to the reference vectors, averaged over the views."""
    similar = [(queries * typical[nearest]).sum(axis=1, dtype=np.float64) for queries, typical in views]
    return Matched(nearest, np.mean(similar, axis=0))


def _measured(matches: Matched, labels: np.ndarray, seed: int) -> tuple[str, str, str]:
    """Accuracy, AUROC and recall out of scope. `labels` are those of the last texts."""
    inside, best = labels >= 0, matches.similarity[-len(labels) :]
    right = (matches.cohort[-len(labels) :] == labels)[inside].astype(np.float64)
    return (
        show(mean(right).estimate(seed)),
        show(auroc_estimate(best, inside, seed)),
        show(_recall(best[inside], best[~inside], seed)),
    )


def _recall(inside: Floats, outside: Floats, seed: int) -> Estimate:
    rng = np.random.default_rng(seed)
    resampled = [
        recall_at_rejection(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(1000)
    ]
    return spread(recall_at_rejection(inside, outside), np.array(resampled), len(outside))


def show(estimate: Estimate) -> str:
    """An estimate in per cent, with its interval."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


# --- a stated risk ----------------------------------------------------------------------------------------------


def _controlled(name: str, matches: Matched, labels: np.ndarray, seed: int) -> Iterator[str]:
    """Fit floors and try them on resamples: how often and how far does the share of wrong tiers exceed the risk."""
    best = matches.similarity
    wrong = (labels < 0) | (matches.cohort % _TIERS != labels % _TIERS)
    rng = np.random.default_rng(seed)
    inside, outside = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    results: dict[str, list[tuple[float, float]]] = {rule: [] for rule in _RULES}
    for _ in range(_RESAMPLES):
        drawn = rng.permutation(inside), rng.permutation(outside)
        fit, tried = (
            np.concatenate([drawn[0][a : a + n - int(n * _OUTSIDE)], drawn[1][b : b + int(n * _OUTSIDE)]])
            for a, b, n in (
                (0, 0, _FIT_ROWS),
                (_FIT_ROWS - int(_FIT_ROWS * _OUTSIDE), int(_FIT_ROWS * _OUTSIDE), _TRIED_ROWS),
            )
        )
        for rule, floor_of in _RULES.items():
            accepted = best[tried] >= floor_of(best[fit], wrong[fit], _RISK)
            results[rule].append((float(wrong[tried][accepted].mean()) if accepted.any() else 0.0, accepted.mean()))
    accept_all = float(wrong[labels >= 0].mean() * (1 - _OUTSIDE) + _OUTSIDE)
    yield f"{name}, {SHOTS} utterances per intent: {100 * accept_all:.1f} % wrong tiers if all are accepted"
    for rule, pairs in results.items():
        risks, accepted = np.array(pairs).T
        yield (
            f"  {rule:<42}wrong {100 * risks.mean():.2f} % on average, "
            f"{100 * np.quantile(risks, 0.95):.2f} % at the 95th percentile, above {100 * _RISK:g} % in "
            f"{int((risks > _RISK).sum())} of {_RESAMPLES} fits, accepts {100 * accepted.mean():.1f} %"
        )


def floor_on_average(scores: Floats, wrong: Bools, risk: float) -> float:
    """The lowest floor with (wrong + 1) / accepted * n / (n + 1) at most `risk`. Infinite if there is none.

    Conformal selection with the rule of Benjamini and Hochberg (Jin and Candes 2023). The share of wrong matches
    among the accepted ones is at most `risk`, on average over fits.
    """
    order = np.argsort(-scores, kind="stable")
    n = len(scores)
    within = (np.cumsum(wrong[order]) + 1) / np.arange(1, n + 1) * n / (n + 1) <= risk
    within[:-1] &= np.diff(scores[order]) != 0
    return float(scores[order][np.flatnonzero(within)[-1]]) if within.any() else np.inf


def floor_nearly_always(scores: Floats, wrong: Bools, risk: float, level: float = 0.95) -> float:
    """The lowest floor at which the share of wrong matches is at most `risk`, in the share `level` of all fits.

    Floors are tested from the highest down by the exact binomial tail, until the first one that fails. This is
    "learn then test" with a fixed sequence (Angelopoulos et al. 2021). Infinite if the first floor fails.
    """
    order = np.argsort(-scores, kind="stable")
    # A test with too few rows always fails. So the sequence starts later, and has few steps, as each can end it.
    least = int(np.ceil(np.log(1 - level) / np.log(1 - risk)))
    steps = np.unique(np.linspace(2 * least, len(scores), 100).astype(int))
    mistakes = np.cumsum(wrong[order])[steps - 1]
    failed = stats.binom.cdf(mistakes, steps, risk) > 1 - level
    passed = int(np.argmax(failed)) if failed.any() else len(steps)
    return float(scores[order][steps[passed - 1] - 1]) if passed else np.inf


_RULES = {"conformal, on average": floor_on_average, "binomial tail, in 95 % of fits": floor_nearly_always}


def int8_against_fp32(cache: Cache, path: Path, seed: int) -> str:
    """Accuracy of the adapted encoder with torch in fp32, and with the back end that `extproc prepare` chose."""
    data = read_clinc(path, SHOTS, seed)
    folder = cache.adapted(data.train)
    labels = np.repeat(np.arange(len(data.intents)), [len(group) for group in data.train.values()])
    texts = [text for group in data.train.values() for text in group]
    inside = data.test_labels >= 0
    accuracy = []
    torch = cache.array(
        f"{folder} torch {seed}", lambda: TorchSentences(str(folder), 1).encode([*texts, *data.test])
    )
    adapted = CachedEncoder(cache, str(folder))
    for rows in (
        torch,
        np.concatenate([adapted.encode(texts), adapted.encode([*data.val, *data.test])[-len(data.test) :]]),
    ):
        centroids, _ = fitted(cache, rows[: len(texts)], labels)
        similarity = rows[len(texts) :] @ centroids.T
        accuracy.append(100 * float((similarity.argmax(axis=1) == data.test_labels)[inside].mean()))
    with cache.prepared():
        choice = read_choice(str(folder))
    back_end = choice.chosen.name if choice is not None else "torch fp32"
    return (
        f"accuracy of the adapted encoder ({SHOTS} utterances per intent, fitted centroids) with torch in fp32: "
        f"{accuracy[0]:.2f} %, with the choice of `extproc prepare` ({back_end}): {accuracy[1]:.2f} %"
    )
