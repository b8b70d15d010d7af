"""Rows out of scope -> proposed intents, and the utterances that blur two cohorts.

Texts are clustered (average linkage) by the vectors that serving matches. A cluster is as tight as the utterances
of the existing intents. A label without an intent is also proposed.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import msgspec
import numpy as np
from scipy.cluster import hierarchy

from extproc.contract.words import Reason
from extproc.encoder.protocols import Encoder, Vectors
from extproc.evidence.execution import Execution
from extproc.evidence.fit.edits import written
from extproc.routing.centroids import fit_centroids
from extproc.routing.index import Index, similarities

# A proposal needs at least this many rows.
LEAST_ROWS = 8
# How many utterances a proposal has. They are the most central texts.
_UTTERANCES = 12
# All pairs of texts are compared. 4,000 texts take 64 MB and a few seconds.
_MOST_TEXTS = 4000
# How many utterances with little margin are listed.
_MOST_BORDERLINE = 15
_BORDERLINE_FOLDS = 5
# A word of a name is in at least this share of the cluster's texts. The second one has at least this part of the
# score of the first. The prior of the log-odds counts as ten texts.
_LEAST_SHARE, _LEAST_SCORE, _PRIOR = 0.2, 0.6, 10.0
_NAME_WORD = re.compile(r"[^\W\d_]{3,}")


class Proposal(msgspec.Struct, frozen=True):
    """A proposed intent."""

    name: str
    rows: int
    utterances: tuple[str, ...]  # the most central first
    labelled: bool  # the name is a label in the traffic
    nearest: str  # the cohort that most of its rows are nearest to; they may belong there
    weight: float = 0.0  # rows of the traffic that its rows stand for


class BorderlineUtterance(msgspec.Struct, frozen=True):
    """An utterance that is almost as near to another cohort as to its own."""

    file: str
    intent: str
    other: str  # the other cohort
    margin: float  # below 0: the other cohort is nearer if its own is fitted without this utterance
    utterance: str


def propose(run: Execution, encoder: Encoder) -> list[Proposal]:
    """Return the proposed intents, the ones that stand for the most rows of the traffic first."""
    cohorts = run.snapshot.policy.cohorts
    by_label: dict[str, list[str]] = {}
    unlabelled: list[str] = []
    near: dict[str, str] = {}
    weight: dict[str, float] = {}
    row_weights = run.weights().tolist()
    for i, intent in enumerate(run.revealed.intents.column()):
        routed = run.routed[i]
        is_foreign = isinstance(intent, str) and intent not in cohorts
        is_outside = routed.decision.reason is Reason.OUT_OF_SCOPE and not isinstance(intent, str)
        if routed.decision.match is None or not (is_foreign or is_outside) or routed.signals is None:
            continue
        text = routed.signals.ask.text
        near[text] = routed.decision.match.cohort
        weight[text] = weight.get(text, 0.0) + row_weights[i]
        (by_label.setdefault(intent, []) if is_foreign else unlabelled).append(text)
    known = near, weight
    proposals = [_proposal(label, texts, encoder, known, True) for label, texts in by_label.items()]
    unlabelled = sorted(dict.fromkeys(unlabelled), key=lambda text: -weight[text])[:_MOST_TEXTS]
    names = _Names(unlabelled, [text for intent in run.config.intents for text in intent.utterances])
    for texts in _clusters(unlabelled, encoder, _typical_distance(run, encoder)):
        proposals.append(_proposal(names.of(texts), texts, encoder, known, False))
    kept = [p for p in proposals if p.rows >= LEAST_ROWS]
    return sorted(kept, key=lambda p: -p.weight)


def _typical_distance(run: Execution, encoder: Encoder) -> float:
    """Return the median, over intents, of the median cosine distance between utterances of one intent."""
    distances = []
    for intent in run.config.intents:
        rows = encoder.encode(intent.utterances)
        distances.append(float(np.median(1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)])))
    return float(np.median(distances))


def _clusters(texts: Sequence[str], encoder: Encoder, distance: float) -> Iterator[list[str]]:
    if len(texts) < LEAST_ROWS:
        return
    tree = hierarchy.linkage(encoder.encode(texts), method="average", metric="cosine")
    member = hierarchy.fcluster(tree, distance, criterion="distance")
    for cluster in np.unique(member):
        yield [text for text, at in zip(texts, member, strict=True) if at == cluster]


def _proposal(
    name: str,
    texts: list[str],
    encoder: Encoder,
    known: tuple[Mapping[str, str], Mapping[str, float]],
    labelled: bool,
) -> Proposal:
    """`known`: the nearest cohort of each text, and how many rows of the traffic stand behind it."""
    near, weight = known
    distinct = list(dict.fromkeys(texts))
    rows: Vectors = encoder.encode(distinct[:_MOST_TEXTS])
    most_central = np.argsort(-(rows @ rows.mean(axis=0)), kind="stable")
    utterances = tuple(distinct[i] for i in most_central[:_UTTERANCES])
    counted: Counter[str] = Counter()
    for text in distinct:
        counted[near[text]] += weight[text]  # type: ignore[assignment]  # a weight need not be whole
    ((nearest_cohort, _),) = counted.most_common(1)
    return Proposal(name, len(texts), utterances, labelled, nearest_cohort, sum(weight[text] for text in distinct))


class _Names:
    """Names of clusters: one or two words that are typical of a cluster alone, in the order of its texts.

    A word counts once for each text. The score is the z-score of the difference of its log-odds in the cluster and
    elsewhere, with a prior from both (Monroe, Colaresi and Quinn 2008). So words that every text has score nothing,
    in any language, and a word that only one or two texts have does not name a cluster.
    """

    def __init__(self, outside: Sequence[str], utterances: Sequence[str]) -> None:
        """`outside` are the texts that are clustered. The utterances of intents are compared, too."""
        self._counts = Counter(word for text in (*outside, *utterances) for word in _name_words(text))
        self._texts = len(outside) + len(utterances)

    def of(self, texts: Sequence[str]) -> str:
        """Return the name of a cluster of `outside`."""
        here = Counter(word for text in texts for word in _name_words(text))
        scores = {
            word: self._score(count, len(texts), word)
            for word, count in here.items()
            if count >= _LEAST_SHARE * len(texts)
        }
        best = sorted(scores, key=lambda word: (-scores[word], word))[:2]
        best = [word for word in best if scores[word] >= _LEAST_SCORE * scores[best[0]]]
        places = {word: _place_of(word, texts) for word in best}
        return "-".join(sorted(best, key=lambda word: places[word])) or "unnamed"

    def _score(self, count: int, texts: int, word: str) -> float:
        other, others = self._counts[word] - count, max(self._texts - texts, 1)
        prior = _PRIOR * self._counts[word] / self._texts
        odds = [(n + prior) / (of - n + _PRIOR - prior) for n, of in ((count, texts), (other, others))]
        return (math.log(odds[0]) - math.log(odds[1])) / math.sqrt(1 / (count + prior) + 1 / (other + prior))


def _place_of(word: str, texts: Sequence[str]) -> float:
    """The mean place of a word in the texts that have it, as a number of words."""
    lists = [_NAME_WORD.findall(text.lower()) for text in texts]
    places = [words.index(word) for words in lists if word in words]
    return sum(places) / len(places)


def _name_words(text: str) -> set[str]:
    return set(_NAME_WORD.findall(text.lower()))


def borderline_utterances(run: Execution, encoder: Encoder) -> list[BorderlineUtterance]:
    """Return the utterances with the least margin over another cohort, the least first.

    Each margin is measured with centroids that were fitted without the utterance.
    """
    intents = run.config.intents
    rows = {intent.intent: encoder.encode(intent.utterances) for intent in intents}
    listed = []
    for fold in range(_BORDERLINE_FOLDS if len(rows) > 1 else 0):
        seen = {
            name: vectors[np.arange(len(vectors)) % _BORDERLINE_FOLDS != fold] for name, vectors in rows.items()
        }
        index = Index({name: fit.centroid[None, :] for name, fit in fit_centroids(seen).items()})
        for intent in intents:
            for i in range(fold, len(intent.utterances), _BORDERLINE_FOLDS):
                by_cohort = similarities(index, rows[intent.intent][i])
                similarity = by_cohort.pop(intent.intent)
                other, best_other = next(iter(by_cohort.items()))
                file = run.config.files[intent.intent]
                margin = similarity - best_other
                listed.append(BorderlineUtterance(file, intent.intent, other, margin, intent.utterances[i]))
    return sorted(listed, key=lambda utterance: utterance.margin)[:_MOST_BORDERLINE]


def as_yaml(proposal: Proposal, tier: str) -> str:
    """Return the proposal as an intent's file with this tier."""
    label = msgspec.json.encode(proposal.name).decode()  # the whole label, although the name may hold less of it
    source = f"with the label {label}" if proposal.labelled else "that are similar"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", proposal.name)
    weighted = proposal.weight and round(proposal.weight) != proposal.rows
    stands_for = f", which stand for {proposal.weight:,.0f}," if weighted else ""
    lines = [
        f"# proposed from {proposal.rows} rows{stands_for} {source}; nearest so far: {proposal.nearest}",
        f"intent: {written(name if name.strip('-') else 'unnamed')}",
        f"tier: {written(tier)}",
        "utterances:",
        # JSON strings are YAML strings.
        *(f"  - {msgspec.json.encode(text).decode()}" for text in proposal.utterances),
    ]
    return "\n".join(lines) + "\n"
