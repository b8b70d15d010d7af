"""The sentences on top of the results of `extproc calibrate`."""

import textwrap
from collections.abc import Iterable, Iterator

from extproc.evidence.fit.calibration import Calibration, Counts, total
from extproc.evidence.fit.choice import TierChoice
from extproc.evidence.measure.controls import ROUTED
from extproc.evidence.measure.headlines import Headline, control_headlines, wrong_headline
from extproc.evidence.measure.metrics import Estimate, exact_interval
from extproc.mismatch import counted


def verdict_text(verdicts: Iterable[Headline]) -> Iterator[str]:
    """The verdicts in lines of at most 116 characters."""
    for verdict in verdicts:
        yield from textwrap.wrap(str(verdict), 116, subsequent_indent="  ")


def calibration_verdicts(calibration: Calibration, risk: float) -> Iterator[Headline]:
    """Whether the fitted floors keep the risk, and how many cohorts abstain."""
    fitted = [fit.after for fit in calibration.fits if fit.evidence is not None and not fit.evidence.abstains]
    abstaining = [fit.before for fit in calibration.fits if fit.evidence is not None and fit.evidence.abstains]
    if sum(counts.accepted for counts in fitted):
        of = "of sources that were left out, " if calibration.sources else ""
        wrong = calibration.elsewhere if calibration.elsewhere.known else _wrong(total(fitted))
        yield _with(f"in {len(fitted)} calibrated cohorts, {of}", wrong_headline(wrong, risk, calibration.weighted))
    if abstaining:
        of = f"{len(abstaining)} of {counted(len(calibration.fits), 'cohort')}"
        sentence = f"{of} abstain, because these rows show no floor that keeps this risk"
        now = total(abstaining)
        count = f"{100 * now.wrong_share:.0f} %" if calibration.weighted else f"{now.wrong:,.0f}"
        figure = (
            f". Before this fit they accept {now.accepted:,} matches, and {count} of these are wrong"
            if now.accepted
            else ""
        )
        yield Headline("ABSTAINS", sentence + figure)
    if not any(fit.evidence is not None for fit in calibration.fits):
        yield Headline("NOTHING FITTED", "the labelled rows are too few for a floor that keeps this risk")


def _wrong(counts: Counts) -> Estimate:
    """The share of wrong matches among the accepted ones."""
    accepted = counts.effective
    return Estimate(counts.wrong_share, *exact_interval(counts.wrong_share * accepted, accepted), counts.accepted)


def _with(prefix: str, headline: Headline) -> Headline:
    return Headline(headline.word, prefix + headline.sentence)


def choice_verdicts(choice: TierChoice) -> Iterator[Headline]:
    """Whether the choice meets its target on the rows that it was not made on, and whether a control is better."""
    routed = next((line for line in choice.lines if line.name == ROUTED), None)
    if routed is not None and choice.target.kind == "quality":
        yield _against(100 * choice.target.value, _times(routed.quality, 100), "the quality", " %", highest=False)
    if routed is not None and choice.target.kind == "cost":
        yield _against(
            choice.target.value, routed.per_1000, "the cost", " dollars per 1,000 requests", highest=True
        )
    costliest = [line for line in choice.lines if line.name.startswith("always ")][-1:]
    for line in costliest if choice.target.kind == "loss" else ():
        if line.behind is not None:
            lead = _times(line.behind, -100)
            loss = Estimate(lead.value + 0.0, lead.high + 0.0, lead.low + 0.0, lead.rows)  # never -0
            yield _against(
                100 * choice.target.value, loss, f"the loss against {line.name}", " points", highest=True
            )
    yield from control_headlines(choice.lines)


def _times(estimate: Estimate, factor: float) -> Estimate:
    return Estimate(factor * estimate.value, factor * estimate.low, factor * estimate.high, estimate.rows)


def _against(target: float, measured: Estimate, what: str, unit: str, highest: bool) -> Headline:
    missed = measured.low > target if highest else measured.high < target
    met = measured.value <= target if highest else measured.value >= target
    word = "ON TARGET" if met else "OFF TARGET" if missed else "NEAR TARGET"
    interval = f"[{measured.low:.4g}, {measured.high:.4g}]"
    return Headline(
        word,
        f"{what} is {measured.value:.4g} {interval}{unit} on {measured.rows:,} rows that the choice did not use. "
        f"The target is {target:g}{unit}",
    )
