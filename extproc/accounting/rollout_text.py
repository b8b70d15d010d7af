"""A comparison of a candidate: the verdict in a sentence, and a table of both arms by cohort."""

import time
from collections.abc import Mapping, Sequence

import msgspec

from extproc.accounting.rollout import ALL, Arm, BesideCount, Comparison, Group, Mean
from extproc.accounting.sequential import ERROR, RolloutVerdict

# The columns of names.
_NAMES = ("cohort", "tier", "candidate cohort", "candidate tier")
_NOTES = (
    "accepted: conversations whose first request was served at the first attempt, with no rejected answer.",
    "difference: candidate minus serving, in percentage points. The bounds hold at every look, and all together "
    f"with a probability of {1 - ERROR:.0%}.",
    "cost: US dollars per 1,000 requests. first byte: seconds. Their intervals (95 %) hold for a single look only.",
    "escalated, re-asked, rating: shares of the requests, and the mean of the ratings (1 is good). They decide "
    "nothing.",
    "-: in this cohort the arms do not have the same requests, so it is not tested. `all` is.",
)  # fmt: skip


def verdict_sentence(comparison: Comparison, share: float) -> str:
    """The verdict with its reason, and what follows. `share` is the candidate's share of the conversations."""
    loss, group = f"{comparison.loss:.3g}", comparison.groups.get(comparison.decided_by)
    match comparison.verdict:
        case RolloutVerdict.STOP:
            assert group is not None
            return f"STOP: the candidate is worse in {_place(group)}: {_shares(group)}. It gets no conversations."
        case RolloutVerdict.PROMOTE:
            assert group is not None
            return (
                f"PROMOTE: the candidate loses less than {loss} of the accepted share: {_shares(group)}. It gets "
                "all conversations. Run `extproc rollout promote`."
            )
        case _:
            return f"HOLD: it is not known yet whether the candidate loses {loss} of the accepted share. " + _power(
                comparison, share
            )


def _power(comparison: Comparison, share: float) -> str:
    if not 0 < share < 1:
        return f"With {share:.0%} of the conversations for the candidate there is nothing to compare."
    more = comparison.more_needed(share)
    if more is None:
        return "So small a loss takes more than ten million conversations: choose a larger `loss`."
    return (
        f"If it is as good, about {_rounded(more):,} more conversations of the candidate promote it "
        f"({_rounded(more / share):,} in all at {share:.1%})."
    )


def _rounded(count: float) -> int:
    """Two digits that count."""
    unit = int(10 ** max(len(str(int(count))) - 2, 0))
    return round(count / unit) * unit


def _place(group: Group) -> str:
    return "all requests together" if group.name == ALL else f"`{group.name}`"


def _shares(group: Group) -> str:
    (candidate, serving), bounds = (group.candidate, group.serving), group.bounds
    assert bounds is not None, "only a group with bounds decides"
    return (
        f"{candidate.successes:,} of {candidate.conversations:,} accepted, against {serving.successes:,} of "
        f"{serving.conversations:,} (difference {_points(group)}, bounds {float(bounds.lower) * 100:+.1f} to "
        f"{float(bounds.upper) * 100:+.1f} points)"
    )


def _points(group: Group) -> str:
    shares = [
        arm.successes / arm.conversations if arm.conversations else None for arm in (group.candidate, group.serving)
    ]
    return f"{(shares[0] - shares[1]) * 100:+.1f}" if shares[0] is not None and shares[1] is not None else ""


class RolloutText(msgspec.Struct, frozen=True):
    """A comparison in words and numbers."""

    verdict: str  # a sentence
    title: str = ""  # the revision, and since when
    tables: Sequence[Sequence[Mapping[str, str]]] = ()  # cells by column name. `cohort` is the first column
    notes: Sequence[str] = ()

    @property
    def text(self) -> str:
        """All of it for a terminal."""
        parts = (self.verdict, self.title, *map(_table, self.tables), "\n".join(self.notes))
        return "\n\n".join(filter(None, parts)) + "\n"


def comparison_text(comparison: Comparison, share: float) -> RolloutText:
    """The verdict, the tables and their notes. `share` is the candidate's share of the conversations."""
    if comparison.since is None:
        return RolloutText(f"No request of {comparison.revision} is in the ledger yet.")
    since = time.strftime("%Y-%m-%d %H:%M", time.gmtime(comparison.since))
    title = f"{comparison.revision} since {since} UTC, with {share:.1%} of the conversations"
    groups = sorted(comparison.groups.values(), key=lambda group: (group.name == ALL, -group.serving.requests))
    tables = [[cells(group) for group in groups] for cells in (_cells, _cells_after)]
    return RolloutText(verdict_sentence(comparison, share), title, tables, _NOTES)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    widths = {name: max(len(name), *(len(row[name]) for row in rows)) for name in rows[0]}
    form = "  ".join(f"{{:{'<' if name in _NAMES else '>'}{width}}}" for name, width in widths.items())
    return "\n".join([form.format(*widths), *(form.format(*row.values()) for row in rows)])


def _cells_after(group: Group) -> dict[str, str]:
    """Escalations, repeated asks and ratings, beside the comparison."""
    cells = {"cohort": group.name}
    arms = (("serving", group.serving), ("candidate", group.candidate))
    for name, arm in arms:
        cells[f"{name} escalated"] = _share(arm.escalated, arm.requests)
    for name, arm in arms:
        cells[f"{name} re-asked"] = _share(arm.re_asked, arm.requests)
    for name, arm in arms:
        cells[f"{name} rating"] = _interval(arm.rating)
    return cells


def _share(count: int, of: int) -> str:
    return f"{count:,} ({count / of:.1%})" if of else "-"


def _cells(group: Group) -> dict[str, str]:
    bounds = group.bounds
    tested = f"{float(bounds.lower) * 100:+.1f} to {float(bounds.upper) * 100:+.1f}" if bounds is not None else "-"
    cells = {"cohort": group.name}
    for name, arm in (("serving", group.serving), ("candidate", group.candidate)):
        cells[f"{name} accepted"] = _accepted(arm)
    cells |= {"difference": _points(group), "bounds": tested}
    for name, arm in (("serving", group.serving), ("candidate", group.candidate)):
        cells |= {f"{name} cost": _interval(arm.cost, 1000), f"{name} first byte": _interval(arm.first_byte_s)}
    return cells


def _accepted(arm: Arm) -> str:
    share = f" ({arm.successes / arm.conversations:.1%})" if arm.conversations else ""
    return f"{arm.successes:,} of {arm.conversations:,}{share}"


def _interval(mean: Mean, scale: float = 1.0) -> str:
    interval = mean.interval
    return "-" if interval is None else f"{interval[0] * scale:.3g} +- {interval[1] * scale:.2g}"


def beside_text(counts: Sequence[BesideCount]) -> RolloutText:
    """The decisions of a candidate that only decides beside: a sentence, and each kind of difference."""
    total = sum(count.requests for count in counts)
    if not total:
        return RolloutText("No decision of the candidate is in the ledger yet.")
    moved = [c for c in counts if (c.tier, c.cohort) != (c.candidate_tier, c.candidate_cohort)]
    other = sum(c.requests for c in moved if c.tier != c.candidate_tier)
    verdict = f"The candidate chooses another tier for {other:,} of {total:,} requests ({other / total:.1%})."
    rows = [
        {
            "cohort": c.cohort,
            "tier": c.tier,
            "candidate cohort": c.candidate_cohort,
            "candidate tier": c.candidate_tier,
            "requests": f"{c.requests:,}",
        }
        for c in moved
    ]
    return RolloutText(verdict, tables=[rows] if rows else [])
