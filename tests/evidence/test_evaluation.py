"""Evaluating a configuration: the serving functions on recorded traffic, the controls, and the report."""

import asyncio
import json
import math
from typing import Any

import msgspec
import numpy as np
import pytest

from extproc.cli.main import main
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute, route_all, seal
from extproc.evidence.measure.columns import columns
from extproc.evidence.measure.controls import MIX, ORACLE, RANDOM, ROUTED
from extproc.evidence.measure.evaluation import evaluate
from extproc.evidence.measure.headlines import wrong_headline
from extproc.evidence.measure.metrics import Estimate
from extproc.evidence.measure.notes import unused
from extproc.evidence.measure.recording import Bounds
from extproc.evidence.show.evaluation import evaluation_text
from extproc.evidence.show.page import as_html
from extproc.routing.router import Router
from tests.evidence.asks import alone
from tests.evidence.folders import good_folder
from tests.evidence.texts import letters

BILL, COOK, NEITHER = "Is my invoice wrong this month", "How long does the egg recipe take", "zebras graze"


@pytest.fixture
def folder(tmp_path):
    """The good folder, with floors that reject a text that shares no word. The small tier's answers are judged."""
    folder = good_folder(tmp_path / "intents", floor=0.2)
    with (folder / "billing.yaml").open("a") as file:
        file.write("accept: [complete, {min_chars: 3}]\nescalate: {to: large, share: 1.0}\n")
    return folder


def run(folder, tmp_path, words, tokens, *rows):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return execute(folder, Memory(words), read_traffic(path), tokens)


def both(small, large, answer="a long answer", **more):
    """Outcomes of both tiers, with token counts that make a small answer cost 1 and a large one 8."""
    return {
        "small": {"success": small, "answer": answer, "tokens_in": 16, "tokens_out": 1, "latency_s": 0.5} | more,
        "large": {"success": large, "answer": "sure", "tokens_in": 14, "tokens_out": 2, "latency_s": 1.0},
    }


SMALL, LARGE = (16 * 0.05 + 1 * 0.2) / 1e6, (14 * 0.4 + 2 * 1.2) / 1e6


def test_a_row_is_decided_as_a_request_is_served(folder, tmp_path, words, tokens):
    """The same router makes the same decision, in every format of a row."""
    bodies = [{"model": "auto", "messages": [{"role": "user", "content": text}]} for text in (BILL, COOK, NEITHER)]
    done = run(
        folder, tmp_path, words, tokens, {"text": BILL}, *({"request": body} for body in bodies),
        {"request": bodies[0] | {"model": "gpt-9"}}, {"request": bodies[1], "headers": {"x-user-tier": "gold"}},
        {"request": {"model": "auto", "messages": [{"role": "user", "content": ""}]}},
    )  # fmt: skip
    assert [routed.decision.reason.value for routed in done.routed] == [
        "matched", "matched", "matched", "out_of_scope", "passthrough", "matched", "no_text"
    ]  # fmt: skip
    assert done.routed[5].decision.rule == "cooks"
    router = Router(done.snapshot, Memory(words))
    body, headers = done.rows[1].request("auto")
    again = asyncio.run(router.route(body, headers))
    routed = route_all(done.snapshot, Memory(words), done.rows)[1]
    assert again.decision == routed.decision == done.routed[1].decision
    assert again.mutation == routed.mutation
    assert (again.request, again.signals) == (done.routed[1].request, done.routed[1].signals)


def test_recorded_answers_are_judged_and_escalated_as_when_serving(folder, tmp_path, words, tokens):
    """One is accepted, two are rejected, and one is not judged because its answer was not recorded."""
    unanswered = both(False, True)
    del unanswered["small"]["answer"]
    done = run(
        folder, tmp_path, words, tokens,
        {"text": f"{BILL} a", "outcomes": both(True, True)},
        {"text": f"{BILL} b", "outcomes": both(False, True, "no")},
        {"text": f"{BILL} c", "outcomes": both(True, False, finish="length")},
        {"text": f"{BILL} d", "outcomes": unanswered},
        {"text": COOK, "outcomes": both(True, False)},
    )  # fmt: skip
    served = [
        (s.path, s.rejections, s.quality, s.cost, s.latency_s, s.judged) for s in done.served if s is not None
    ]
    cost_of_both = SMALL + LARGE
    assert served == [
        (("small",), (), 1.0, pytest.approx(SMALL), 0.5, 1),
        (("small", "large"), ("too_short",), 1.0, pytest.approx(cost_of_both), 1.5, 1),
        (("small", "large"), ("cut",), 0.0, pytest.approx(cost_of_both), 1.5, 1),
        (("small",), (), 0.0, pytest.approx(SMALL), 0.5, 0),
        (("large",), (), 0.0, pytest.approx(LARGE), 1.0, 0),
    ]


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_is_read_as_the_verifier_reads_it(folder, tmp_path, words, tokens, stream):
    """Its text is judged and its usage is priced. An outcome may have the name of the tier's model."""
    member = "delta" if stream else "message"
    message = {member: {"role": "assistant", "content": "no"}, "finish_reason": "stop", "index": 0}
    response: Any = {"choices": [message], "usage": {"prompt_tokens": 16, "completion_tokens": 1}}
    if stream:
        response = f"data: {json.dumps(response)}\n\ndata: [DONE]\n\n"
    outcomes = {"qwen3-8b": {"response": response, "quality": 0.25}, "large": both(True, True)["large"]}
    (served,) = run(folder, tmp_path, words, tokens, {"text": BILL, "outcomes": outcomes}).served
    assert served is not None
    assert (served.rejections, served.first_quality, served.quality) == (("too_short",), 0.25, 1.0)
    assert served.cost == pytest.approx(SMALL + LARGE)


def test_the_limit_on_a_cohorts_escalations_also_holds_offline(folder, tmp_path, words, tokens):
    """After the first ten answers, a share of 0.1 lets one in ten escalate. The other answers are served."""
    path = folder / "billing.yaml"
    path.write_text(path.read_text().replace("share: 1.0", "share: 0.1"))
    rows = [{"text": f"{BILL} {i}", "outcomes": both(False, True, "no")} for i in range(40)]
    done = run(folder, tmp_path, words, tokens, *rows)
    escalated = sum(len(s.path) == 2 for s in done.served if s is not None)
    assert 12 <= escalated <= 14
    assert f"{40 - escalated} rejected answers were served: their cohort had used its share of escalations." in (
        evaluate(done).notes
    )


def test_no_decision_depends_on_labels_or_outcomes(folder, tmp_path, words, tokens):
    """The seal does not depend on labels and outcomes. It depends on thresholds."""
    texts = (BILL, COOK, NEITHER)
    plain = run(folder, tmp_path, words, tokens, *({"text": t} for t in texts))
    judged = run(folder, tmp_path, words, tokens, *({"text": t, "intent": "billing", "outcomes": both(True, False)}
                                                   for t in texts))  # fmt: skip
    assert plain.sealed == judged.sealed
    cohorts = dict(plain.snapshot.policy.cohorts)
    cohorts["billing"] = msgspec.structs.replace(cohorts["billing"], floor=0.21)
    policy = msgspec.structs.replace(plain.snapshot.policy, cohorts=cohorts)
    assert seal(msgspec.structs.replace(plain.snapshot, policy=policy), plain.routed) != plain.sealed


def test_matching_is_measured_by_cohort_and_overall(folder, tmp_path, words, tokens):
    """Six rows counted by hand. A row that repeats an utterance is left out. An unknown label is out of scope."""
    report = evaluate(
        run(
            folder, tmp_path, words, tokens,
            {"text": f"{BILL} a", "intent": "billing"}, {"text": f"{BILL} b", "intent": "billing"},
            {"text": f"{COOK} c", "intent": "billing"}, {"text": f"{COOK} d", "intent": "cooking"},
            {"text": NEITHER, "intent": None}, {"text": f"{COOK} e", "intent": "travel"},
            {"text": "send my  last INVOICE again", "intent": "cooking"},
        )
    )  # fmt: skip
    billing, cooking, outside = report.groups
    assert [(g.name, g.rows) for g in report.groups] == [("billing", 3), ("cooking", 1), ("out of scope", 2)]
    assert (billing.accuracy.value, cooking.accuracy.value, report.overall.accuracy.value) == (2 / 3, 1.0, 0.75)
    assert (billing.wrong.value, cooking.wrong.value, report.overall.wrong.value) == (0.0, 2 / 3, 0.4)
    assert (outside.accepted.value, report.scope_recall.value, math.isnan(outside.accuracy.value)) == (
        0.5,
        0.5,
        True,
    )
    assert report.overall.reasons == {"matched": 5, "out_of_scope": 1}
    assert report.overall.tiers == {"large": 4, "small": 2}
    assert report.confusion[0] == ("billing", "billing", 2)
    assert set(report.confusion[1:]) == {
        ("billing", "cooking", 1), ("cooking", "cooking", 1), ("out of scope", "cooking", 1),
        ("out of scope", "fallback", 1),
    }  # fmt: skip
    assert report.data["verbatim"] == 1
    assert "These labels are not intents here and count as out of scope: travel (1)." in report.notes


def test_unknown_names_in_rows_are_reported(folder, tmp_path, words, tokens):
    """A misspelt label, a misspelt tier, and a request for a model that the policy does not route."""
    request = {"model": "gpt-4o", "messages": [{"role": "user", "content": BILL}]}
    done = run(
        folder, tmp_path, words, tokens,
        {"text": f"{BILL} a", "intent": "Billing", "outcomes": {"Small": {"success": True}, "large": {}}},
        {"text": f"{BILL} b", "intent": "", "outcomes": {"large+reasoning": {}, "large+thinking": {}}},
        {"request": request, "intent": "billing"},
    )  # fmt: skip
    notes = [
        "These labels are not intents here and count as out of scope: Billing (1), '' (1).",
        "Outcomes under these names are ignored, as no tier or model has the name: Small (1), large+thinking (1).",
        "Requests for these models pass through unmatched, as `retarget` in policy.yaml does not list them: "
        "gpt-4o (1).",
    ]
    assert list(unused(done)) == notes
    assert [note for note in evaluate(done).notes if note in notes] == notes
    assert list(unused(done, {"Billing", ""})) == notes[1:]


def test_the_configuration_is_compared_with_its_controls(folder, tmp_path, words, tokens):
    """Computed by hand for four rows: two stay small, one is escalated and wins, one goes directly to large."""
    done = run(
        folder, tmp_path, words, tokens,
        {"text": f"{BILL} a", "outcomes": both(True, True)}, {"text": f"{BILL} b", "outcomes": both(False, True)},
        {"text": f"{BILL} c", "outcomes": both(False, True, "no")}, {"text": COOK, "outcomes": both(True, False)},
    )  # fmt: skip
    lines = {line.name: line for line in evaluate(done).lines}
    small, large = 0.5, 0.75
    routed_cost = (2 * SMALL + (SMALL + LARGE) + LARGE) / 4
    expected = {
        ROUTED: (0.5, routed_cost),
        "always small": (small, SMALL),
        "always large": (large, LARGE),
        RANDOM: (0.5 * small + 0.5 * large, routed_cost),
        MIX: (small + (routed_cost - SMALL) / (LARGE - SMALL) * (large - small), routed_cost),
        ORACLE: (1.0, (2 * SMALL + 2 * LARGE) / 4),
    }
    assert {name: (line.quality.value, line.per_1000.value / 1000) for name, line in lines.items()} == {
        name: (pytest.approx(quality), pytest.approx(cost)) for name, (quality, cost) in expected.items()
    }
    behind = lines["always large"].behind
    assert lines[ROUTED].behind is None and behind is not None and behind.value == pytest.approx(-0.25)
    assert lines[ROUTED].per_success.value == pytest.approx(routed_cost / 0.5)


def test_a_correction_needs_the_quality_of_both_answers(folder, tmp_path, words, tokens):
    """The quality of the first answer of one escalation is unknown. So one of one is better, not one of two."""
    unknown = both(False, True, "no")
    del unknown["small"]["success"]
    rows = [
        {"text": f"{BILL} a", "outcomes": both(False, True, "no")},
        {"text": f"{BILL} b", "outcomes": unknown},
    ]
    overall = evaluate(run(folder, tmp_path, words, tokens, *rows)).overall
    assert (overall.escalated.rows, overall.escalated.value) == (2, 1.0)
    assert (overall.corrected.rows, overall.corrected.value) == (1, 1.0)


def test_a_request_that_repeats_an_utterance_is_left_out(folder, tmp_path, words, tokens):
    """In either format, an utterance cannot test the centroids that it helped to make."""
    rows = [
        {"request": {"model": "auto", "messages": [{"role": "user", "content": text}]}, "intent": "billing"}
        for text in ("Send my last  invoice AGAIN", f"{BILL} a")
    ]
    done = run(folder, tmp_path, words, tokens, *rows, {"text": "send my last invoice again"})
    assert ([row.line for row in done.rows], done.verbatim) == ([2], 2)


def test_a_fit_on_the_same_file_is_reported(folder, tmp_path, words, tokens):
    """Floors and tiers look better on the rows that they were fitted on. Rows of another file are fine."""
    row = {"text": f"{BILL} a", "intent": "billing"}
    digest = run(folder, tmp_path, words, tokens, row).digest
    models = "models: {small: qwen3-8b}"
    with (folder / "billing.yaml").open("a") as file:
        file.write(f"chosen: {{date: '2026-11-22', data: '{digest}', rows: 1, target: cost=1, {models}, "
                   "quality: [0.0, 1.0], per_1000: [0.0, 1.0]}\n")  # fmt: skip
    note_start = "Rows of this file were used to fit the tiers of 1 cohorts, "
    assert any(note.startswith(note_start) for note in evaluate(run(folder, tmp_path, words, tokens, row)).notes)
    other = evaluate(run(folder, tmp_path, words, tokens, row, {"text": f"{BILL} b"}))
    assert not any(note.startswith("Rows of this file") for note in other.notes)


def test_a_repeated_conversation_does_not_narrow_intervals(folder, tmp_path, words, tokens):
    """Rows of one conversation are resampled together. The intervals equal those with each row once."""
    rows = [
        {"text": f"{BILL if i % 2 else COOK} {i}", "intent": "billing", "session": f"s{i}",
         "outcomes": both(i % 3 > 0, i % 4 > 0)}
        for i in range(12)
    ]  # fmt: skip
    once, thrice = (evaluate(run(folder, tmp_path, words, tokens, *rows * times)) for times in (1, 3))

    def intervals(report):
        overall = report.overall
        estimates = [overall.accuracy, overall.accepted, overall.quality, overall.per_1000]
        estimates += [
            e for line in report.lines for e in (line.quality, line.per_1000, line.behind) if e is not None
        ]
        return [x for e in estimates for x in (e.low, e.value, e.high)]

    assert intervals(thrice) == pytest.approx(intervals(once))
    assert (once.overall.quality.rows, thrice.overall.quality.rows) == (12, 36)


def test_rows_without_the_answer_that_they_need_are_reported(folder, tmp_path, words, tokens):
    """A row sent to a tier without a recorded answer has no quality and does not count as a failure."""
    only_small = {"small": both(True, True)["small"]}
    report = evaluate(run(folder, tmp_path, words, tokens, {"text": COOK, "outcomes": only_small}, {"text": BILL}))
    assert report.lines == []
    assert (
        "1 rows lack the answer of a tier that they were sent to. They count as rows without outcomes."
        in report.notes
    )


def chosen(tier, success, propensity=None):
    outcome = {"success": success, "tokens_in": 100, "tokens_out": 0}
    return {tier: outcome if propensity is None else outcome | {"propensity": propensity}}


def test_a_tier_recorded_on_chosen_rows_has_bounds_and_no_line(folder, tmp_path, words, tokens):
    """The log of a router: small is right on 71.5 % of the 600 rows that it served. On all 1,000 it is 44 %."""
    served = [{"text": alone(BILL, i), "outcomes": chosen("small", i < 429)} for i in range(600)]
    served += [{"text": alone(COOK, i), "outcomes": chosen("large", i < 340)} for i in range(400)]
    report = evaluate(run(folder, tmp_path, words, tokens, *served))
    assert [(line.name, line.quality.value) for line in report.lines] == [(ROUTED, 0.769)]
    rounded = [msgspec.structs.replace(b, low=round(b.low, 9), high=round(b.high, 9)) for b in report.bounds]
    assert rounded == [
        Bounds("always small", 0.429, 0.829, 600, 1000), Bounds("always large", 0.340, 0.940, 400, 1000),
    ]  # fmt: skip
    assert [str(verdict) for verdict in report.verdicts] == [
        "UNKNOWN: the quality of `always small` is between 42.9 and 82.9 %. Its answers were recorded on 600 of "
        "1,000 rows, which were not drawn at random",
        "UNKNOWN: the quality of `always large` is between 34.0 and 94.0 %. Its answers were recorded on 400 of "
        "1,000 rows, which were not drawn at random",
    ]
    assert " ".join(evaluation_text(report).splitlines()[:2]).split() == str(report.verdicts[0]).split()
    assert "always small   " not in evaluation_text(report) and report.paired == []
    both_recorded = [
        row | {"outcomes": row["outcomes"] | chosen("small", True) | chosen("large", True)} for row in served[:50]
    ]
    report = evaluate(run(folder, tmp_path, words, tokens, *both_recorded, *served[50:]))
    assert {line.quality.rows for line in report.paired} == {50}
    assert "the 50 rows that have every answer; other rows may differ" in evaluation_text(report)


def test_answers_recorded_by_chance_estimate_the_tier_on_all_rows(folder, tmp_path, words, tokens):
    """The other tier is asked on a tenth of the rows. With its propensity, always small is near the true 44 %."""
    rng, rows = np.random.default_rng(3), []
    for i in range(2000):
        bill = i % 5 < 3
        small = rng.random() < (0.715 if bill else 0.0275)
        outcomes = chosen("small", bool(small)) if bill else chosen("large", True)
        if rng.random() < 0.1:
            outcomes |= chosen("large", True, 0.1) if bill else chosen("small", bool(small), 0.1)
        rows.append({"text": alone(BILL if bill else COOK, i), "outcomes": outcomes})
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    lines = {line.name: line.quality for line in report.lines}
    assert [*lines] == [ROUTED, "always small", "always large", MIX] and report.bounds == []
    assert lines["always small"].low < 0.44 < lines["always small"].high < 0.5
    assert lines["always large"].value == pytest.approx(1.0, abs=0.02)
    assert report.estimated and "doubly robust estimates" in evaluation_text(report)


def test_propensities_without_a_chance_for_every_row_give_bounds(folder, tmp_path, words, tokens):
    """Recipes never went to the small tier, so no propensity says how it answers them."""
    bills = [{"text": alone(BILL, i), "outcomes": chosen("small", True, 0.9)} for i in range(50)]
    recipes = [{"text": alone(COOK, i), "outcomes": chosen("large", True)} for i in range(100)]
    report = evaluate(run(folder, tmp_path, words, tokens, *bills, *recipes))
    assert [bounds.name for bounds in report.bounds] == ["always small", "always large"]


def test_rows_that_were_not_drawn_count_as_rows_and_rows_without_a_chance_do_not(folder, tmp_path, words, tokens):
    """The log of a router that explores. No rule judges the large tier, so its answers are drawn, too."""
    rng, rows = np.random.default_rng(5), []
    for i in range(2000):
        bill = i % 2 == 0
        right = {"small": bool(rng.random() < (0.8 if bill else 0.2)), "large": True}
        chances = {"large": 0.2} if bill else {"small": 0.1, "large": 0.1}
        outcomes = {tier: {"propensity": chance} for tier, chance in chances.items()}
        if bill:
            outcomes |= chosen("small", right["small"])
        if rng.random() < 0.2:
            tier = [*chances][int(rng.integers(len(chances)))]
            outcomes |= chosen(tier, right[tier], chances[tier])
        rows.append({"text": alone(BILL if bill else COOK, i), "outcomes": outcomes})
    hosted = [{"text": alone(BILL, i), "outcomes": chosen("small", False)} for i in range(5000, 5500)]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows, *hosted))
    lines = {line.name: line.quality for line in report.lines}
    assert [*lines] == [ROUTED, "always small", "always large", MIX] and report.bounds == []
    assert lines["always small"].low < 0.5 < lines["always small"].high < 0.65
    assert lines["always large"].value == pytest.approx(1.0, abs=0.05)
    assert lines[ROUTED].low < 0.9 < lines[ROUTED].high
    assert (
        "500 rows had no chance to be explored. The lines that compare tiers are about the other rows."
        in report.notes
    )


def test_a_row_counts_as_often_as_its_weight(folder, tmp_path, words, tokens):
    """A row of weight 3 gives the measures of three equal rows of one conversation."""
    rows = [
        {"text": alone(BILL if i % 2 else COOK, i), "intent": "billing" if i % 5 else "cooking", "session": f"s{i}",
         "outcomes": both(i % 3 > 0, i % 4 > 0)}
        for i in range(20)
    ]  # fmt: skip
    heavy = [row | {"weight": 3} if i < 5 else row for i, row in enumerate(rows)]
    weighted = evaluate(run(folder, tmp_path, words, tokens, *heavy))
    repeated = evaluate(run(folder, tmp_path, words, tokens, *rows, *rows[:5], *rows[:5]))

    def measures(report):
        overall = report.overall
        estimates = [overall.accuracy, overall.accepted, overall.wrong, overall.quality, overall.per_1000]
        estimates += [report.auroc, report.tiers.right, *(line.quality for line in report.lines)]
        return [x for e in estimates for x in (e.low, e.value, e.high)]

    assert measures(weighted) == pytest.approx(measures(repeated), nan_ok=True)


# Verdicts


def priced(small, large):
    """Outcomes whose costs are 80 for the small tier and 76 for the large one."""
    return {
        "small": {"success": small, "tokens_in": 1600, "tokens_out": 0},
        "large": {"success": large, "tokens_in": 190, "tokens_out": 0},
    }


def test_the_first_sentence_says_that_one_tier_for_everything_is_better(folder, tmp_path, words, tokens):
    """The large tier is right on 75.3 % of the rows at 95 % of the cost. The small tier, which serves, on 70 %."""
    rows = [{"text": alone(BILL, i), "outcomes": priced(i < 700, i < 753)} for i in range(1000)]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    sentence = "DOMINATED: always-large is 5.3 points better and 5 % cheaper on these rows"
    assert [str(verdict) for verdict in report.verdicts] == [sentence]
    assert evaluation_text(report).splitlines()[0] == sentence
    page = as_html(report, "t")
    assert page.index("5.3 points better and 5 % cheaper") < page.index("<table")
    assert msgspec.json.decode(msgspec.json.encode(report))["verdicts"][0]["word"] == "DOMINATED"


def test_wrong_matches_are_counted_beside_the_risk(folder, tmp_path, words, tokens):
    """37 of 100 rows have another label than their trusted match. The tiers follow from the labels."""
    rows = [{"text": alone(COOK, i), "intent": "billing" if i < 37 else "cooking"} for i in range(100)]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    assert str(report.verdicts[0]) == (
        "TOO MANY WRONG: 37 of 100 trusted matches are wrong. No cohort is calibrated. The default risk of "
        "`extproc calibrate` is 5 %"
    )
    assert report.tiers.cells == [("small", "large", 37), ("large", "large", 63)]
    text = evaluation_text(report)
    assert "right tier: 63.0 [54.0, 72.0] % of 100 labelled rows" in text
    assert "37.0 [28.0, 46.0] of 100 !" in text
    assert text.index("tier needed") < text.index("nearest is right")
    assert " ".join(text.split()).startswith(str(report.verdicts[0]))  # its line is wrapped


@pytest.mark.parametrize(("wrong", "word"), [(Estimate(0.37, 0.28, 0.47, 100), "TOO MANY WRONG"),
                                             (Estimate(0.03, 0.01, 0.05, 900), "WITHIN THE RISK"),
                                             (Estimate(0.06, 0.02, 0.12, 100), "UNCLEAR")])  # fmt: skip
def test_the_risk_of_the_policy_decides_the_word(wrong, word):
    """The interval lies above the risk, below it, or on both sides."""
    headline = wrong_headline(wrong, 0.05)
    assert headline.word == word
    count = round(wrong.value * wrong.rows)
    sentence = f"{count} of {wrong.rows} trusted matches are wrong; the policy's risk is 5 %"
    assert headline.sentence.startswith(sentence)


def test_labels_without_a_trusted_match_are_evidence(folder, tmp_path, words, tokens):
    """Two labelled rows match nothing. The verdict does not say that they have no label."""
    rows = [{"text": alone(NEITHER, i), "intent": None} for i in range(2)]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    assert [str(verdict) for verdict in report.verdicts] == [
        "NO TRUSTED MATCH: none of 2 labelled rows has a match above its floors"
    ]


def test_labels_that_a_confident_match_contradicts_are_listed(folder, tmp_path, words, tokens):
    """A tenth of the labels is wrong. Their lines are named, and no other line is."""
    rows = [{"text": alone(BILL, i), "intent": "cooking" if i % 10 == 3 else "billing"} for i in range(100)]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    assert [row.line for row in report.disagreements] == [10 * i + 4 for i in range(10)]
    assert (
        "CHECK LABELS: the label of 10 rows disagrees with a confident match. Check these labels before you "
        "reword utterances: lines 4, 14, 24, 34, 44, 54, 64, 74, ..."
        in (evaluation_text(report).replace("\n  ", " "))
    )
    assert "  4: cooking, billing; 14: cooking, billing; " in evaluation_text(report)


def test_wrong_matches_of_a_weak_configuration_are_no_label_errors(folder, tmp_path, words, tokens):
    """A third of the matches is wrong, at every level of confidence. The labels are not to blame."""
    rows = [{"text": alone(BILL, i), "intent": "cooking" if i % 3 == 0 else "billing"} for i in range(90)]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    assert report.disagreements == []
    assert [verdict.word for verdict in report.verdicts] == ["TOO MANY WRONG", "TOO LOW"]


def test_an_impossible_token_count_is_named_and_counts_as_the_context(folder, tmp_path, words, tokens):
    """One count of a billion would be the whole cost of the file."""
    outcomes = both(True, True)
    outcomes["small"]["tokens_in"] = 1_000_000_000
    done = run(folder, tmp_path, words, tokens, {"text": BILL, "outcomes": outcomes})
    context = done.snapshot.policy.tier("small").context
    assert done.answers[0]["small"].cost == pytest.approx((context * 0.05 + 1 * 0.2) / 1e6)
    assert (
        "1 answers have more tokens than the context of their tier, and count as the context: "
        f"line 1: 1,000,000,000 tokens of `small`, whose context is {context:,}."
    ) in evaluate(done).notes


def test_unrecorded_token_counts_are_estimated_and_reported(folder, tmp_path, words, tokens):
    """They are estimated from recorded texts. Without a text, only the input is priced."""
    outcomes = {"small": {"success": True, "answer": "one two three"}, "large": {"success": True}}
    done = run(folder, tmp_path, words, tokens, {"text": BILL, "outcomes": outcomes})
    (answers,) = done.answers
    input_tokens = tokens.count(BILL)
    assert answers["small"].cost == pytest.approx((input_tokens * 0.05 + 3 * 0.2) / 1e6)
    assert answers["large"].cost == pytest.approx(input_tokens * 0.4 / 1e6)
    assert done.token_counts == {"recorded": 0, "estimated": 1, "input only": 1}


@pytest.mark.parametrize("rows", [
    [{"text": BILL}],
    [{"text": NEITHER, "intent": None}],
    [{"text": BILL, "intent": "billing", "outcomes": both(True, True)}],
    [{"text": f"{BILL} {i}", "intent": "billing", "outcomes": both(False, False)} for i in range(3)],
    [{"text": BILL, "outcomes": {"elsewhere": {"success": True}}}],
], ids=["unlabelled", "nothing in scope", "one row", "all fail", "a tier nobody has"])  # fmt: skip
def test_degenerate_traffic_can_be_reported(rows, folder, tmp_path, words, tokens):
    """One class, one row, no success or no outcomes: a missing measure is a dash in text, page and JSON."""
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    text, page, json = evaluation_text(report), as_html(report, "t"), msgspec.json.encode(report)
    assert "nan" not in text.lower() and "nan" not in page.lower().replace("finance", "")
    assert msgspec.json.decode(json)["data"]["rows"] == len(rows)


def test_the_page_loads_nothing_and_contains_no_prompt(folder, tmp_path, words, tokens):
    """It has no link, no script, and no text of a request or an answer."""
    rows = [{"text": f"{BILL} {w}", "intent": "billing", "outcomes": both(True, True)} for w in ("a", "b")]
    report = evaluate(run(folder, tmp_path, words, tokens, *rows))
    page = as_html(report, "intents <on> traffic")
    assert "http" not in page and "<script" not in page and "url(" not in page
    assert "intents &lt;on&gt; traffic" in page
    assert "`" not in page and "<code>extproc calibrate</code>" in page
    assert "invoice" not in page and "a long answer" not in page


def test_the_same_seed_gives_the_same_report(folder, tmp_path, words, tokens):
    """Every bit of every measure is the same."""
    rows = [
        {"text": f"{BILL} {letters(i)}", "intent": "billing", "outcomes": both(i % 3 > 0, True)} for i in range(9)
    ]
    done = run(folder, tmp_path, words, tokens, *rows)
    first, second, other = (msgspec.json.encode(evaluate(done, seed)) for seed in (1, 1, 2))
    assert first == second != other
    assert columns(done).labelled.all()


def test_a_cancelled_task_is_skipped_by_the_encoder(words):
    """Ctrl-C during the encoding ends the command without a traceback from the event loop."""
    complaints = []

    async def interrupted():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: complaints.append(context))
        task = asyncio.create_task(Memory(words).embed(BILL, 1.0))
        await asyncio.sleep(0)  # the task waits for its vector
        task.cancel()
        return await asyncio.gather(task, return_exceptions=True)

    (ended,) = asyncio.run(interrupted())
    assert (type(ended), complaints) == (asyncio.CancelledError, [])


def test_an_unwritable_report_is_rejected_before_the_work(folder, tmp_path, capsys):
    """A wrong path does not cost minutes of evaluation."""
    errors = {
        tmp_path / "nowhere" / "report.html": "its folder does not exist: create it, or give another path",
        tmp_path / "report.json": f"--out writes an HTML page: for JSON give --json {tmp_path}/report.json",
    }
    for path, error in errors.items():
        assert main(["eval", "--intents", str(folder), "none.jsonl", "--out", str(path)]) == 2
        assert error in capsys.readouterr().err


def test_conversations_are_replayed_with_and_without_the_switch_budget(folder, tmp_path, words, tokens):
    """Billing is a small tier's work, and cooking a large tier's. The budget allows no switch back and forth."""
    policy = folder / "policy.yaml"
    prices = policy.read_text().replace("input: 0.40,", "input: 0.40, cached_input: 0.04,")
    policy.write_text(prices + "sticky: {switch_budget: 0.1}\n")
    turns = [{"role": "system", "content": "x " * 10_000}]
    rows = []
    for ask in (COOK, BILL, COOK, BILL):
        turns.append({"role": "user", "content": ask})
        request = {"model": "auto", "messages": list(turns)}
        rows.append({"request": request, "session": "one", "outcomes": both(True, True)})
        turns.append({"role": "assistant", "content": "Yes."})
    alone = {"text": COOK, "outcomes": both(True, False)}
    evaluation = evaluate(run(folder, tmp_path, words, tokens, *rows, alone))
    never, free, sticky = evaluation.switching
    assert [line.name for line in evaluation.switching] == [
        "never switching down", "switching freely", "switch_budget 0.1",
    ]  # fmt: skip
    assert (never.switches, free.switches, sticky.switches) == (0, 3, 0)
    assert (never.rows, never.quality) == (4, 1.0)
    assert sticky.prompts <= 1.1 * never.prompts < free.prompts
    assert "switch_budget 0.1" in evaluation_text(evaluation)
    policy.write_text(prices)
    assert evaluate(run(folder, tmp_path, words, tokens, *rows)).switching == []
