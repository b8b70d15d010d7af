"""What falls out of scope -> proposed intents; and utterances that pull two cohorts together.

Texts are clustered by the vectors that serving matches (average linkage), as tightly as the utterances of the
intents that are there hold together. Labels that are no intent yet are proposals by themselves.
"""

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

# Fewer rows than this are no kind of task yet.
_LEAST_ROWS = 8
# Utterances of a proposal: the most central ones.
_UTTERANCES = 12
# All pairs are compared: 4,000 texts take 64 MB and seconds.
_MOST_TEXTS = 4000
_PULLS = 15
_FOLDS = 5
_WORD = re.compile(r"[^\W\d_]{3,}")


class Proposal(msgspec.Struct, frozen=True):
    """An intent that nobody wrote yet."""

    name: str
    rows: int
    utterances: tuple[str, ...]  # the most central first
    labelled: bool  # the name is a label of the traffic's
    nearest: str  # the cohort that most of its rows are nearest to: they may belong there


class Pull(msgspec.Struct, frozen=True):
    """An utterance that lies almost as near to another cohort."""

    file: str
    intent: str
    other: str
    margin: float  # below 0: without it, it would fall to the other
    utterance: str


def propose(run: Execution, encoder: Encoder) -> list[Proposal]:
    """Proposed intents, those with most rows first."""
    cohorts = run.snapshot.policy.cohorts
    by_label: dict[str, list[str]] = {}
    loose: list[str] = []
    near: dict[str, str] = {}
    for one, known in zip(run.routed, run.known, strict=True):
        if one.signals is None or one.decision.match is None:
            continue
        text = one.signals.ask.text
        near[text] = one.decision.match.cohort
        if isinstance(known.intent, str) and known.intent not in cohorts:
            by_label.setdefault(known.intent, []).append(text)
        elif one.decision.reason is Reason.OUT_OF_SCOPE and not isinstance(known.intent, str):
            loose.append(text)
    found = [_proposal(label, texts, encoder, near, True) for label, texts in by_label.items()]
    loose = list(dict.fromkeys(loose))[:_MOST_TEXTS]
    common = Counter(word for text in loose for word in _words(text))
    for texts in _clusters(loose, encoder, _distance(run, encoder)):
        found.append(_proposal(_name(texts, common, len(loose)), texts, encoder, near, False))
    return sorted((p for p in found if p.rows >= _LEAST_ROWS), key=lambda p: -p.rows)


def _distance(run: Execution, encoder: Encoder) -> float:
    """How far apart the utterances of one intent lie, in the middle: the tightness that people write intents in."""
    apart = []
    for intent in run.config.intents:
        rows = encoder.encode(intent.utterances)
        apart.append(float(np.median(1 - (rows @ rows.T)[np.triu_indices(len(rows), 1)])))
    return float(np.median(apart))


def _clusters(texts: Sequence[str], encoder: Encoder, distance: float) -> Iterator[list[str]]:
    if len(texts) < _LEAST_ROWS:
        return
    tree = hierarchy.linkage(encoder.encode(texts), method="average", metric="cosine")
    member = hierarchy.fcluster(tree, distance, criterion="distance")
    for cluster in np.unique(member):
        yield [text for text, at in zip(texts, member, strict=True) if at == cluster]


def _proposal(name: str, texts: list[str], encoder: Encoder, near: Mapping[str, str], labelled: bool) -> Proposal:
    different = list(dict.fromkeys(texts))
    rows: Vectors = encoder.encode(different)
    central = np.argsort(-(rows @ rows.mean(axis=0)), kind="stable")
    utterances = tuple(different[i] for i in central[:_UTTERANCES])
    ((nearest_cohort, _),) = Counter(near[text] for text in texts).most_common(1)
    return Proposal(name, len(texts), utterances, labelled, nearest_cohort)


def _name(texts: Sequence[str], common: Counter[str], of: int) -> str:
    """The two words that most of these texts have and most others do not."""
    here = Counter(word for text in texts for word in _words(text))
    own = {
        word: count / len(texts) - (common[word] - count) / max(of - len(texts), 1) for word, count in here.items()
    }
    best = sorted(own, key=lambda word: (-own[word], word))[:2]
    return "-".join(best) or "unnamed"


def _words(text: str) -> set[str]:
    return set(_WORD.findall(text.lower()))


def pulls(run: Execution, encoder: Encoder) -> list[Pull]:
    """The utterances that centroids without them put nearest to another cohort, least margin first."""
    intents = run.config.intents
    rows = {intent.intent: encoder.encode(intent.utterances) for intent in intents}
    found = []
    for fold in range(_FOLDS if len(rows) > 1 else 0):
        seen = {name: vectors[np.arange(len(vectors)) % _FOLDS != fold] for name, vectors in rows.items()}
        index = Index({name: fit.centroid[None, :] for name, fit in fit_centroids(seen).items()})
        for intent in intents:
            for i in range(fold, len(intent.utterances), _FOLDS):
                near = similarities(index, rows[intent.intent][i])
                own = near.pop(intent.intent)
                other, most = next(iter(near.items()))
                file = run.config.files[intent.intent]
                found.append(Pull(file, intent.intent, other, own - most, intent.utterances[i]))
    return sorted(found, key=lambda pull: pull.margin)[:_PULLS]


def as_yaml(proposal: Proposal, tier: str) -> str:
    """The proposal as an intent's file, at the default tier until evidence says otherwise."""
    label = msgspec.json.encode(proposal.name).decode()  # as it is: a name may hold less
    source = f"with the label {label}" if proposal.labelled else "that lie together"
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", proposal.name)
    lines = [
        f"# proposed from {proposal.rows} rows {source}; nearest so far: {proposal.nearest}",
        f"intent: {written(name if name.strip('-') else 'unnamed')}",
        f"tier: {written(tier)}",
        "utterances:",
        # JSON strings are YAML strings.
        *(f"  - {msgspec.json.encode(text).decode()}" for text in proposal.utterances),
    ]
    return "\n".join(lines) + "\n"
