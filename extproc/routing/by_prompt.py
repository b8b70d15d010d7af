"""The tier that the prompt chooses in a cohort with `by_prompt`, if there is a prediction for it."""

import msgspec

from extproc.encoder.protocols import Vectors
from extproc.routing.ask import Ask
from extproc.routing.index import Match, nearest
from extproc.routing.policy import Cohort, Policy
from extproc.routing.snapshot import Snapshot


def match_prompt(snapshot: Snapshot, vector: Vectors, ask: Ask) -> Match:
    """Return the nearest cohort, with the predicted gain where the prompt chooses a tier of this cohort."""
    match = nearest(snapshot.index, vector)
    cohort = snapshot.policy.cohorts[match.cohort]
    if snapshot.gains is None or cohort.by_prompt is None or not cohort.asks_prompt:
        return match
    predicted = snapshot.gains.predict(cohort.by_prompt.tiers, cohort.name, vector, ask)
    if predicted is None:
        return match
    gain, columns = predicted
    return msgspec.structs.replace(match, gain=gain, columns=columns if cohort.judges_gain else ())


def rank_by_prompt(policy: Policy, cohort: Cohort | None, match: Match | None) -> int | None:
    """Return the rank of the tier that the prompt chooses. None: the cohort's own tier serves."""
    if cohort is None or cohort.by_prompt is None or match is None or match.gain is None:
        return None
    cheaper, costlier = cohort.by_prompt.tiers
    return policy.rank(costlier if match.gain >= cohort.by_prompt.least else cheaper)
