"""CLINC150: accuracy in scope, what is found out of scope, and floors that hold a stated risk."""

import gzip
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
from scipy import stats

from bench.kept import Kept, KeptEncoder, fitted, means
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
_FEW, _ALL = f"{SHOTS} utterances an intent", "all utterances an intent"
_NEAR = f"{SHOTS} utterances of {_INTENTS - _LEFT_OUT} intents; out of scope: texts of the other {_LEFT_OUT}"
# Intents are dealt to so many tiers in turn, by name: CLINC150 knows none.
_TIERS = 3
_RISK, _RESAMPLES, _OUTSIDE = 0.05, 200, 0.1
_FIT_ROWS, _TRIED_ROWS = 1500, 3000


class Clinc(msgspec.Struct, frozen=True):
    """The data; labels are indices into `intents`, -1 out of scope."""

    intents: tuple[str, ...]
    train: dict[str, list[str]]
    val: list[str]
    val_labels: np.ndarray
    test: list[str]
    test_labels: np.ndarray


def read_clinc(path: Path, shots: int | None, seed: int) -> Clinc:
    """Read it; with `shots`, that many utterances of each intent, drawn at random."""
    with gzip.open(path) as lines:
        rows = [msgspec.json.decode(line) for line in lines]
    intents = tuple(sorted({row["intent"] for row in rows} - {"oos"}))
    train: dict[str, list[str]] = {name: [] for name in intents}
    known = [row for row in rows if row["split"] == "train" and row["intent"] != "oos"]
    for i in np.random.default_rng(seed).permutation(len(known)):
        if shots is None or len(train[known[i]["intent"]]) < shots:
            train[known[i]["intent"]].append(known[i]["text"])
    at = {name: i for i, name in enumerate(intents)}

    def part(name: str) -> tuple[list[str], np.ndarray]:
        some = [row for row in rows if row["split"] == name]
        return [row["text"] for row in some], np.array([at.get(row["intent"], -1) for row in some])

    return Clinc(intents, train, *part("val"), *part("test"))


def table(kept: Kept, path: Path, seed: int) -> Iterator[str]:
    """The lines of the table, as they are ready."""
    head = ("accuracy % [95 %]", "AUROC % [95 %]", "found out of scope % [95 %]")
    yield f"{'':<56}{head[0]:<20}{head[1]:<20}{head[2]}"
    controlled: list[str] = []
    for title, data in settings(path, seed).items():
        yield title
        for name, found in ways(kept, data).items():
            if title == _NEAR and not name.endswith((_SERVED, _OWN)):
                continue
            cells = (f"{estimate:<20}" for estimate in _measured(found, data.test_labels, seed))
            yield f"  {name:<54}" + "".join(cells).rstrip()
            if name in _CONTROLLED and title == _FEW:
                labels = np.concatenate([data.val_labels, data.test_labels])
                controlled += _controlled(name, found, labels, seed)
    yield int8_against_fp32(kept, path, seed)
    yield ""
    yield from controlled


def adapt_encoders(folder: Path, path: Path, seed: int) -> None:
    """Make what the table needs and takes longest."""
    for data in settings(path, seed).values():
        Kept(folder).adapted(data.train)


def settings(path: Path, seed: int) -> dict[str, Clinc]:
    """Title -> the data of each part of the table."""
    few = read_clinc(path, SHOTS, seed)
    return {_FEW: few, _NEAR: left_out(few, seed), _ALL: read_clinc(path, None, seed)}


def left_out(data: Clinc, seed: int) -> Clinc:
    """Some of its intents; out of scope are the texts of the others, and those alone."""
    rng = np.random.default_rng(seed)
    known = np.sort(rng.permutation(len(data.intents))[_LEFT_OUT:])
    names = tuple(data.intents[i] for i in known)
    place = np.full(len(data.intents), -1)
    place[known] = np.arange(len(known))

    def part(texts: list[str], labels: np.ndarray) -> tuple[list[str], np.ndarray]:
        return [text for text, label in zip(texts, labels, strict=True) if label >= 0], place[labels[labels >= 0]]

    train = {name: data.train[name] for name in names}
    return Clinc(names, train, *part(data.val, data.val_labels), *part(data.test, data.test_labels))


class Matched(msgspec.Struct, frozen=True):
    """Of each text of val and test."""

    cohort: np.ndarray  # the nearest
    similarity: Floats  # to it


def ways(kept: Kept, data: Clinc) -> dict[str, Matched]:
    """Name -> what each text of val and test is matched to."""
    labels = np.repeat(np.arange(len(data.intents)), [len(some) for some in data.train.values()])
    texts = [text for some in data.train.values() for text in some]
    asked = [*data.val, *data.test]
    found: dict[str, Matched] = {}
    served: list[View] = []
    for adapted in ("", "adapted, "):
        sentences = KeptEncoder(kept, str(kept.adapted(data.train))) if adapted else KeptEncoder(kept)
        rows, queries = sentences.encode(texts), sentences.encode(asked)
        back = ADAPTED_BACK if adapted else BACK
        mean, (centroids, typical) = means(rows, labels), fitted(kept, rows, labels, back)
        found[f"{adapted}mean centroid"] = matched((queries, mean, mean))
        found[f"{adapted}fitted centroids"] = matched((queries, centroids, typical))
        encoder = FeatureEncoder(sentences, ADAPTED_WORDS if adapted else WORDS_WEIGHT)
        queries = encoder.encode(asked)
        centroids, typical = fitted(kept, encoder.encode(texts), labels, back)
        served.append((queries, centroids, typical))
        found[f"{adapted}{_SERVED}"] = matched(served[-1])
        found[f"{adapted}{_OWN}"] = matched((queries, centroids, centroids))
    found["two encoders: adapted + frozen, averaged"] = matched(*served)
    return found


View = tuple[Vectors, Vectors, Vectors]
_SERVED = "as served: fitted, opening and words"
_OWN = "the same, similarity to the centroid itself"
_CONTROLLED = (_SERVED, f"adapted, {_SERVED}")


def matched(*views: View) -> Matched:
    """By the queries, centroids and what similarity is measured to, of one encoder or of several, averaged."""
    nearest = np.sum([queries @ centroids.T for queries, centroids, _ in views], axis=0).argmax(axis=1)
    similar = [(queries * typical[nearest]).sum(axis=1, dtype=np.float64) for queries, _, typical in views]
    return Matched(nearest, np.mean(similar, axis=0))


def _measured(found: Matched, labels: np.ndarray, seed: int) -> tuple[str, str, str]:
    """Of the last texts, which have these labels."""
    inside, best = labels >= 0, found.similarity[-len(labels) :]
    right = (found.cohort[-len(labels) :] == labels)[inside].astype(np.float64)
    return (
        show(mean(right).estimate(seed)),
        show(auroc_estimate(best, inside, seed)),
        show(_recall(best[inside], best[~inside], seed)),
    )


def _recall(inside: Floats, outside: Floats, seed: int) -> Estimate:
    rng = np.random.default_rng(seed)
    again = [
        recall_at_rejection(rng.choice(inside, len(inside)), rng.choice(outside, len(outside))) for _ in range(1000)
    ]
    return spread(recall_at_rejection(inside, outside), np.array(again), len(outside))


def show(estimate: Estimate) -> str:
    """In per cent, with its interval."""
    return f"{100 * estimate.value:.1f} [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


# --- a stated risk ----------------------------------------------------------------------------------------------


def _controlled(name: str, matches: Matched, labels: np.ndarray, seed: int) -> Iterator[str]:
    """Floors fitted and tried on resamples: how often, and how far, the share of wrong tiers is above the risk."""
    best = matches.similarity
    wrong = (labels < 0) | (matches.cohort % _TIERS != labels % _TIERS)
    rng = np.random.default_rng(seed)
    inside, outside = np.flatnonzero(labels >= 0), np.flatnonzero(labels < 0)
    found: dict[str, list[tuple[float, float]]] = {rule: [] for rule in _RULES}
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
            found[rule].append((float(wrong[tried][accepted].mean()) if accepted.any() else 0.0, accepted.mean()))
    every = float(wrong[labels >= 0].mean() * (1 - _OUTSIDE) + _OUTSIDE)
    yield f"{name}, {SHOTS} utterances an intent: {100 * every:.1f} % wrong tier if all is accepted"
    for rule, results in found.items():
        risks, accepted = np.array(results).T
        yield (
            f"  {rule:<42}wrong {100 * risks.mean():.2f} % on average, {100 * np.quantile(risks, 0.95):.2f} at the "
            f"95th percentile; above {100 * _RISK:g} % in {int((risks > _RISK).sum())} of {_RESAMPLES}; "
            f"accepts {100 * accepted.mean():.1f} %"
        )


def floor_on_average(scores: Floats, wrong: Bools, risk: float) -> float:
    """The least floor with (wrong + 1) / accepted * n / (n + 1) at most `risk`, infinite when there is none.

    Conformal selection with the rule of Benjamini and Hochberg (Jin and Candes 2023): the share of wrong ones
    among accepted ones is at most `risk` on average over fits.
    """
    order = np.argsort(-scores, kind="stable")
    n = len(scores)
    held = (np.cumsum(wrong[order]) + 1) / np.arange(1, n + 1) * n / (n + 1) <= risk
    held[:-1] &= np.diff(scores[order]) != 0
    return float(scores[order][np.flatnonzero(held)[-1]]) if held.any() else np.inf


def floor_nearly_always(scores: Floats, wrong: Bools, risk: float, level: float = 0.95) -> float:
    """The floor down to which the share of wrong ones is at most `risk`, in `level` of all fits.

    Floors are tested from the highest down, each by the exact binomial tail, until the first that fails: learn
    then test with a fixed sequence (Angelopoulos et al. 2021). Infinite when the first fails.
    """
    order = np.argsort(-scores, kind="stable")
    # Too few rows can pass no test: the sequence begins where it can, and has few steps, as each may end it.
    least = int(np.ceil(np.log(1 - level) / np.log(1 - risk)))
    steps = np.unique(np.linspace(2 * least, len(scores), 100).astype(int))
    mistakes = np.cumsum(wrong[order])[steps - 1]
    failed = stats.binom.cdf(mistakes, steps, risk) > 1 - level
    passed = int(np.argmax(failed)) if failed.any() else len(steps)
    return float(scores[order][steps[passed - 1] - 1]) if passed else np.inf


_RULES = {"conformal, on average": floor_on_average, "binomial tail, in 95 % of fits": floor_nearly_always}


def int8_against_fp32(kept: Kept, path: Path, seed: int) -> str:
    """What converting the adapted encoder costs: its accuracy by torch in fp32 and as `extproc prepare` chose."""
    data = read_clinc(path, SHOTS, seed)
    folder = kept.adapted(data.train)
    labels = np.repeat(np.arange(len(data.intents)), [len(some) for some in data.train.values()])
    texts = [text for some in data.train.values() for text in some]
    inside = data.test_labels >= 0
    found = []
    torch = kept.array(
        f"{folder} torch {seed}", lambda: TorchSentences(str(folder), 1).encode([*texts, *data.test])
    )
    adapted = KeptEncoder(kept, str(folder))
    for rows in (
        torch,
        np.concatenate([adapted.encode(texts), adapted.encode([*data.val, *data.test])[-len(data.test) :]]),
    ):
        centroids, _ = fitted(kept, rows[: len(texts)], labels)
        similarity = rows[len(texts) :] @ centroids.T
        found.append(100 * float((similarity.argmax(axis=1) == data.test_labels)[inside].mean()))
    with kept.prepared():
        choice = read_choice(str(folder))
    by = choice.chosen.name if choice is not None else "torch fp32"
    return (
        f"the adapted encoder ({SHOTS} utterances an intent, fitted centroids) by torch in fp32: {found[0]:.2f} %, "
        f"as `extproc prepare` chose ({by}): {found[1]:.2f} %"
    )
