"""The sentences on top of `calibrate`: the risk and the target, on rows that nothing was fitted on."""

from types import SimpleNamespace as Fields
from typing import Any

import pytest

from extproc.evidence.fit.calibration import Counts
from extproc.evidence.fit.target import Target
from extproc.evidence.measure.controls import ROUTED, ControlLine
from extproc.evidence.measure.metrics import NOTHING, Estimate
from extproc.evidence.show.verdicts import calibration_verdicts, choice_verdicts


def fit(evidence, before, after) -> Any:
    return Fields(evidence=evidence, before=before, after=after)


def test_a_fit_says_what_it_keeps_and_which_cohorts_abstain():
    """Two cohorts keep 5 %. The third abstains, although it accepts with its present floor."""
    fitted, abstaining = Fields(abstains=False), Fields(abstains=True)
    calibration: Any = Fields(sources=(), elsewhere=NOTHING, weighted=False, fits=[
        fit(fitted, Counts(200, 180, 40), Counts(200, 150, 2)), fit(fitted, Counts(100, 90, 9), Counts(100, 80, 1)),
        fit(abstaining, Counts(100, 90, 35), Counts(100, 0, 0)),
    ])  # fmt: skip
    assert list(map(str, calibration_verdicts(calibration, 0.05))) == [
        "WITHIN THE RISK: in 2 calibrated cohorts, 3 of 230 trusted matches are wrong; the policy's risk is 5 %",
        "ABSTAINS: 1 of 3 cohorts abstain, because these rows show no floor that keeps this risk. Before this fit "
        "they accept 90 matches, and 35 of these are wrong",
    ]


def test_a_fit_on_too_few_rows_says_so():
    """Nothing is written, so nothing is kept and nothing abstains."""
    calibration: Any = Fields(sources=(), elsewhere=NOTHING, weighted=False, fits=[
        fit(None, Counts(3, 3, 1), Counts(3, 0, 0))
    ])  # fmt: skip
    assert list(map(str, calibration_verdicts(calibration, 0.05))) == [
        "NOTHING FITTED: the labelled rows are too few for a floor that keeps this risk"
    ]


@pytest.mark.parametrize(("target", "word"), [
    (Target("quality", 0.7), "ON TARGET"), (Target("quality", 0.75), "NEAR TARGET"),
    (Target("quality", 0.9), "OFF TARGET"),
    (Target("cost", 0.25), "ON TARGET"), (Target("cost", 0.22), "NEAR TARGET"), (Target("cost", 0.1), "OFF TARGET"),
])  # fmt: skip
def test_a_choice_says_whether_it_meets_its_target(target, word):
    """On the rows that it was not made on, with the interval."""
    routed = ControlLine(
        ROUTED, Estimate(0.72, 0.68, 0.76, 500), Estimate(0.23, 0.21, 0.25, 500), Estimate(0.1, 0.1, 0.1, 500)
    )
    choice: Any = Fields(target=target, lines=[routed])
    (verdict,) = choice_verdicts(choice)
    figure = (
        "the quality is 72 [68, 76] %"
        if target.kind == "quality"
        else ("the cost is 0.23 [0.21, 0.25] dollars per 1,000 requests")
    )
    value = 100 * target.value if target.kind == "quality" else target.value
    unit = " %" if target.kind == "quality" else " dollars per 1,000 requests"
    assert str(verdict) == (
        f"{word}: {figure} on 500 rows that the choice did not use. The target is {value:g}{unit}"
    )
