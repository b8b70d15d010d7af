"""The sentences on top of a result: the meaning of its figures, and the limits of the evidence."""

from collections.abc import Iterable, Iterator, Sequence

import msgspec

from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED, ControlLine
from extproc.evidence.measure.labels import Disagreement, TierMatrix
from extproc.evidence.measure.metrics import Estimate
from extproc.evidence.measure.recording import Bounds

# `calibrate` keeps this risk if no other is given.
DEFAULT_RISK = 0.05
# A sentence lists at most this many lines of the file.
_MOST_LINES = 8


class Headline(msgspec.Struct, frozen=True):
    """A verdict: a word for it, and the sentence with its figures."""

    word: str
    sentence: str

    def __str__(self) -> str:
        return f"{self.word}: {self.sentence}"


def evaluation_headlines(
    lines: Sequence[ControlLine],
    bounds: Sequence[Bounds],
    matches: Iterable[Headline],
    tiers: TierMatrix,
    rows: Sequence[Disagreement],
    labelled: int = 0,
) -> list[Headline]:
    """The verdicts on an evaluation, the one on money first. `matches` is the verdict on wrong matches, if any."""
    unknown = [Headline("UNKNOWN", bounds_text(each)) for each in bounds]
    verdicts = [*control_headlines(lines), *unknown, *matches, *_on_tiers(tiers), *_on_labels(rows)]
    if labelled:
        nothing = Headline("NO TRUSTED MATCH", f"none of {labelled:,} labelled rows has a match above its floors")
    else:
        nothing = Headline(
            "NO EVIDENCE", "no row has a label or an outcome, so nothing shows whether these decisions are right"
        )
    return verdicts or [nothing]


# --- quality and cost ---------------------------------------------------------------------------------------------


def bounds_text(bounds: Bounds) -> str:
    """Sentences on a quality that is not known."""
    return (
        f"the quality of `{bounds.name}` is between {100 * bounds.low:.1f} and {100 * bounds.high:.1f} %. Its "
        f"answers were recorded on {bounds.recorded:,} of {bounds.rows:,} rows, which were not drawn at random"
    )


def control_headlines(lines: Sequence[ControlLine]) -> Iterator[Headline]:
    """Whether one tier for everything, or a fixed mix, is better than the configuration."""
    single = [line for line in lines if line.name not in (ROUTED, RANDOM, MIX, ORACLE)]
    better = [line for line in single if _dominates(line)]
    if better:
        best = min(better, key=lambda line: line.behind.value if line.behind is not None else 0.0)
        yield Headline("DOMINATED", f"{best.name.replace(' ', '-')} is {_gain(best)} on these rows")
        return
    mix = next((line for line in lines if line.name == MIX), None)
    if mix is None or mix.behind is None or len(single) < 2:
        return
    points = f"{100 * abs(mix.behind.value):.1f} points {_interval(mix.behind)}"
    if mix.behind.low > 0:
        yield Headline("BETTER", f"{points} above the best fixed mix of tiers at the same cost")
    elif mix.behind.high < 0:
        yield Headline("WORSE", f"{points} below a fixed mix of tiers at the same cost")
    else:
        change = f"{100 * mix.behind.value:+z.1f} points {_interval(mix.behind)}"
        yield Headline("NOT SHOWN", f"the gain over a fixed mix of tiers at the same cost is {change}. It may be 0")


def _dominates(line: ControlLine) -> bool:
    """Whether this is at least as good and as cheap, and shown to be better or cheaper."""
    behind, cheaper = line.behind, line.cheaper
    if behind is None or cheaper is None or not cheaper.known:
        return False
    return behind.value <= 0 and cheaper.value >= 0 and (behind.high < 0 or cheaper.low > 0)


def _gain(line: ControlLine) -> str:
    """How much better and cheaper a dominating line is: "5.3 points better and 5 % cheaper"."""
    assert line.behind is not None and line.cheaper is not None
    points, saved = -100 * line.behind.value, 100 * line.cheaper.value
    better = f"{points:.1f} points better" if points >= 0.05 else "as good"
    return f"{better} and {saved:.0f} % cheaper" if saved >= 0.5 else f"{better} at the same cost"


def _interval(estimate: Estimate) -> str:
    return f"[{100 * estimate.low:z.1f}, {100 * estimate.high:z.1f}]"


# --- labels -------------------------------------------------------------------------------------------------------


def wrong_headline(wrong: Estimate, risk: float | None, weighted: bool = False) -> Headline:
    """Whether trusted matches are wrong more often than the policy's risk. None: no cohort is calibrated."""
    limit = DEFAULT_RISK if risk is None else risk
    count = f"{100 * wrong.value:.1f} %" if weighted else f"{round(wrong.value * wrong.rows):,}"
    source = (
        f"; the policy's risk is {100 * limit:g} %"
        if risk is not None
        else f". No cohort is calibrated. The default risk of `extproc calibrate` is {100 * limit:g} %"
    )
    sentence = f"{count} of {wrong.rows:,} trusted matches are wrong{source}"
    if wrong.low > limit:
        return Headline("TOO MANY WRONG", sentence)
    if wrong.high <= limit:
        return Headline("WITHIN THE RISK", sentence)
    return Headline("UNCLEAR", f"{sentence}. The 95 % interval {_interval(wrong)} % contains this risk")


def _on_tiers(tiers: TierMatrix) -> Iterator[Headline]:
    if tiers.below_rows:
        yield Headline(
            "TOO LOW",
            f"{tiers.below_rows:,} of {tiers.below.rows:,} rows that need more than the cheapest tier were sent "
            "below the tier of their label",
        )


def _on_labels(rows: Sequence[Disagreement]) -> Iterator[Headline]:
    if rows:
        lines = ", ".join(f"{row.line}" for row in rows[:_MOST_LINES])
        more = ", ..." if len(rows) > _MOST_LINES else ""
        yield Headline(
            "CHECK LABELS",
            f"the label of {len(rows):,} rows disagrees with a confident match. Check these labels before you "
            f"reword utterances: lines {lines}{more}",
        )
