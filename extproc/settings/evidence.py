"""The evidence that `extproc calibrate` writes into an intent."""

import math
from typing import Annotated

import msgspec

from extproc.settings.about import about
from extproc.settings.tier import Tier


class Probability(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The probability that a match is right: a logistic curve of its similarity and margin (Platt 1999)."""

    similarity: Annotated[float, about("Slope of the similarity, from 0 up: nearer is never less likely right.")]
    margin: Annotated[float, about("Slope of the margin, from 0 up.")]
    offset: Annotated[float, about("Offset of the curve.")]

    def of(self, similarity: float, margin: float) -> float:
        """The probability, from 0 to 1."""
        return 1 / (1 + math.exp(-max(-700.0, self.similarity * similarity + self.margin * margin + self.offset)))


class Evidence(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The evidence for the floor of a cohort. `extproc calibrate` writes it."""

    date: Annotated[str, about("Day of the fit, as YYYY-MM-DD.")]
    data: Annotated[str, about("Hash of the labelled traffic.")]
    rows: Annotated[int, about("Number of its distinct rows that landed in this cohort.")]
    encoder: Annotated[str, about("Name of the encoder model.")]
    centroids: Annotated[
        str,
        about("Hash of everything that the centroids are made of. After a change the evidence is stale."),
    ]
    risk: Annotated[float, about("Share of accepted matches that may be wrong, on average over fits.")]
    wrong: Annotated[
        tuple[float, float],
        about(
            "95 % interval of the share of accepted matches that are wrong, on rows that were not fitted on. With "
            "`abstains`: of all its matches."
        ),
    ]
    accepted: Annotated[float, about("Share of rows that the floor accepts, on rows that were not fitted on.")]
    probability: Annotated[Probability, about("The probability that a match is right.")]
    pool: Annotated[
        int | None,
        about(
            "Number of distinct rows of all cohorts that share the margin, because each has too few rows. `wrong` "
            "and `accepted` are then about all of them. Left out: the floor is the cohort's own."
        ),
    ] = None
    deciles: Annotated[
        tuple[float, ...] | None,
        about(
            "Nine deciles of the similarity of these rows. The router compares the similarity of its traffic with "
            "them, which a metric shows. Left out: the rows are too few."
        ),
    ] = None
    abstains: Annotated[
        bool,
        about("No floor keeps the risk, so no match counts, unless the intent has `abstain: off`."),
    ] = False

    @property
    def stamp(self) -> str:
        """The data and the day, in one short word each."""
        return f"{self.data} {self.date}"

    @property
    def figure(self) -> str:
        """The interval of the share of wrong matches, as text."""
        low, high = (100 * end for end in self.wrong)
        return f"{low:.0f} to {high:.0f} % wrong on {self.rows} rows"


class Chosen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The evidence for the tier and settings of a cohort. `extproc calibrate --target` writes it."""

    date: Annotated[str, about("Day of the choice, as YYYY-MM-DD.")]
    data: Annotated[str, about("Hash of the recorded traffic.")]
    rows: Annotated[int, about("Number of its rows that landed in this cohort and have outcomes.")]
    target: Annotated[
        str, about("quality=SHARE, cost=US dollars per 1,000 requests, or loss=SHARE, over all the traffic.")
    ]
    models: Annotated[
        dict[str, str], about("Models of the tiers that were compared. With other models the choice is stale.")
    ]
    quality: Annotated[tuple[float, float], about("95 % interval of the quality, on rows not chosen on.")]
    per_1000: Annotated[
        tuple[float, float],
        about("95 % interval of the cost in US dollars per 1,000 requests, on rows that were not chosen on."),
    ]

    def holds(self, tiers: tuple[Tier, ...]) -> bool:
        """Whether the tiers that were compared still have the same models."""
        now = {tier.name: tier.model for tier in tiers}
        return all(now.get(name) == model for name, model in self.models.items())

    @property
    def stamp(self) -> str:
        """The data and the day, in one short word each."""
        return f"{self.data} {self.date}"


class ByPrompt(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The choice between two tiers by the prompt. `extproc calibrate --target` writes it."""

    tiers: Annotated[tuple[str, str], about("The two tiers, the cheaper one first.")]
    least: Annotated[
        float,
        about(
            "Least predicted gain in quality, for the mean extra cost, at which the costlier tier serves. The "
            "intent's `tier` serves if there is no prediction."
        ),
    ]
    gain: Annotated[
        tuple[float, float],
        about(
            "95 % interval of the gain in quality over spending as much on the costlier tier at random, as "
            "the mean over all shares, on rows that were not fitted on."
        ),
    ]
    rows: Annotated[int, about("Number of distinct rows of this cohort that show the gain.")]
    fit: Annotated[str, about("Seal of gains.safetensors. With another file the choice is stale.")]
