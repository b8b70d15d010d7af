"""The arithmetic of `make bench-wild`, on cases computed by hand, and a small run by the functions that serve."""

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
import pytest

from bench import wild
from bench.wild_measures import OUT_OF_SCOPE, Judged, curve, estimates, measure
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute

CONFIGS = Path(__file__).parents[1] / "configs"
BILL, COOK, NEITHER = "Is my invoice wrong this month", "How long does the egg recipe take", "zebras graze"


def judged(**changes):
    """Six rows: two easy ones, two hard ones and two out of scope, of three sources with two rows each."""
    rows = Judged(
        source=np.array(["a", "a", "b", "b", "c", "c"], dtype=object),
        language=np.array(["en", "de", "en", "en", "en", "de"], dtype=object),
        label=np.array(["faq", "faq", "code", "code", OUT_OF_SCOPE, OUT_OF_SCOPE], dtype=object),
        right=np.array([True, False, True, True, False, False]),
        accepted=np.array([True, True, True, False, True, False]),
        scope=np.array([0.9, 0.3, 0.8, 0.7, 0.6, 0.1]),
        cheap=np.array([0.9, 0.3, -math.inf, 0.7, 0.6, -math.inf]),
        tier=np.array([0, 0, 1, 0, 0, 1]),
        wanted=np.array([0, 0, 1, 1, 1, 1]),
        destructive=np.array([False, False, False, False, True, False]),
    )
    return msgspec.structs.replace(rows, **changes)


def test_every_measure_computed_by_hand():
    """The scores in scope are 0.9, 0.8, 0.7 and 0.3. With 0.6 and 0.1 they make eight pairs, one of them wrong."""
    assert measure(judged()) == {
        "right": 3 / 4,
        "AUROC": 7 / 8,
        "found @5 %": 1 / 2,  # nothing in scope may be rejected, so the threshold is 0.3
        "right tier": 4 / 6,
        "hard->small": 1 / 2,
        "oos->small": 1 / 2,
        "destructive": 1 / 6,
        "curve": 1 / 2,  # 0.7 is the first score of another row
        "wrong": 2 / 4,
        "accepted": 4 / 6,
    }


@pytest.mark.parametrize(
    ("scores", "easy", "allowed", "expected"),
    [
        ([4, 3, 2, 1], [True, False, True, False], 0.0, 0.5),
        ([4, 3, 2, 1], [True, False, True, False], 0.5, 1.0),
        ([4, 4, 2, 1], [True, False, True, False], 0.0, 0.0),  # equal scores are taken together
        ([4, -math.inf, 2, 1], [True, True, True, False], 0.0, 2 / 3),  # never above a threshold
        ([-math.inf, -math.inf], [True, False], 1.0, 0.0),
    ],
)  # fmt: skip
def test_the_curve_of_a_few_rows(scores, easy, allowed, expected):
    assert curve(np.array(scores, dtype=float), np.array(easy), allowed) == pytest.approx(expected)


def test_a_measure_without_rows_is_not_a_number():
    """Rows of one label have no AUROC, no curve and nothing out of scope."""
    values = measure(judged().at(np.array([0, 1])))
    assert (values["right"], values["right tier"]) == (0.5, 1.0)
    assert all(math.isnan(values[title]) for title in ("AUROC", "found @5 %", "hard->small", "oos->small", "curve"))


def test_intervals_are_resampled_by_source():
    """All rows of a source are right or wrong together. So nine rows know no more than three."""
    three = judged(
        right=np.array([True, True, False, False, False, False]), label=np.array(["faq"] * 6, dtype=object)
    )
    right = estimates(three)["right"]
    assert (right.value, right.low, right.high) == (1 / 3, 0.0, 1.0)


def test_two_sources_have_no_interval():
    """They say too little about a third one."""
    two = estimates(judged().at(np.array([0, 1, 2, 3])))["right"]
    assert two.value == 3 / 4 and math.isnan(two.low) and math.isnan(two.high)


def test_an_id_names_its_source_and_language(tmp_path):
    """A source may contain a slash. Other ids and damaged lines have no name."""
    path = tmp_path / "rows.jsonl"
    path.write_text(
        '{"id": "dev/P3 trec/rotten/en/7"}\n{"id": "dev/MBPP/pt/1"}\n{"id": 3}\n{"text": "x"}\nno json\n'
    )
    assert wild.names_of(path) == {1: ("P3 trec/rotten", "en"), 2: ("MBPP", "pt")}


@pytest.fixture
def folder(tmp_path):
    """The good folder: billing goes to the small tier with a cap, and cooking to the large one."""
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))
    for name in ("billing", "cooking"):
        with (folder / f"{name}.yaml").open("a") as file:
            file.write("floor: 0.2\n")
    return folder


def traffic(tmp_path, *rows):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def _cells(line):
    return line.split()


def test_controls_send_every_row_to_one_place(folder, words):
    policy = compile_snapshot(load_config(folder), words).policy
    rows = judged(
        label=np.array(["billing", "billing", "billing", "cooking", OUT_OF_SCOPE, OUT_OF_SCOPE], dtype=object)
    )
    assert wild.most_common(rows) == "billing"
    default = measure(wild.always(rows, policy, OUT_OF_SCOPE))
    assert (default["right"], default["accepted"], default["AUROC"], default["destructive"]) == (0, 0, 0.5, 0)
    common = wild.always(rows, policy, "billing")
    assert (common.right.sum(), common.accepted.all()) == (3, True)


def test_a_row_is_judged_by_what_serves(folder, tmp_path, words):
    """The second row is labelled as billing, and cooking is nearer. The third shares a word with nothing."""
    path = traffic(
        tmp_path,
        {"id": "x/one/en/1", "text": BILL, "intent": "billing"},
        {"id": "x/one/de/2", "text": COOK, "intent": "billing"},
        {"id": "x/two/en/3", "text": NEITHER, "intent": "oos"},
        {"id": "x/two/en/4", "text": "Why is my invoice so high", "intent": "cooking"},
        {"id": "x/two/en/5", "text": COOK},
    )
    run = execute(folder, Memory(words), read_traffic(path), Tokens())
    rows = wild.judge(run, wild.names_of(path))
    assert rows.source.tolist() == ["one", "one", "two", "two"]
    assert rows.language.tolist() == ["en", "de", "en", "en"]
    assert rows.label.tolist() == ["billing", "billing", OUT_OF_SCOPE, "cooking"]
    assert rows.right.tolist() == [True, False, False, False]
    assert rows.accepted.tolist() == [True, True, False, True]
    assert rows.tier.tolist() == [0, 1, 1, 0]
    assert rows.wanted.tolist() == [0, 0, 1, 1]
    assert rows.destructive.tolist() == [False, False, False, True]


def test_the_table_has_the_controls_and_a_line_for_each_group(folder, tmp_path, words):
    english = f"billing: [{BILL}]\ncooking: [{COOK}]\nout_of_scope: [{NEITHER}]\n"
    (tmp_path / "heldout.yaml").write_text(english)
    foreign = f"it: {{billing: [{BILL}]}}\nfr: {{cooking: [Why is my invoice so high, {COOK}]}}\n"
    (tmp_path / "languages.yaml").write_text(foreign)
    path = traffic(
        tmp_path,
        {"id": "x/one/en/1", "text": BILL, "intent": "billing"},
        {"id": "x/two/de/2", "text": NEITHER, "intent": "oos"},
    )
    lines = list(wild.run_table(folder, path, Memory(words), tmp_path))
    assert lines[1] == "0 of 2 rows have no match"
    cells = {line[:28].strip(): line[28:].split() for line in lines[3:]}
    assert cells["all rows"] == _cells("2 100.0 100.0 100.0 100.0 - 0.0 0.0 100.0 0.0 50.0")
    assert cells["own held-out prompts"] == _cells("3 100.0 100.0 100.0 100.0 0.0 0.0 0.0 100.0 0.0 66.7")
    assert cells["own, other languages"] == _cells("3 66.7 - - 66.7 50.0 - 33.3 100.0 33.3 100.0")
    assert cells["it"] == _cells("1 100.0 - - 100.0 - - 0.0 - 0.0 100.0")
    assert cells["fr"] == _cells("2 50.0 - - 50.0 50.0 - 50.0 - 50.0 100.0")
    assert cells["always the default tier"] == _cells("2 0.0 50.0 0.0 50.0 - 0.0 0.0 0.0 - 0.0")
    assert cells["always billing (most rows)"] == _cells("2 100.0 50.0 0.0 50.0 - 100.0 50.0 0.0 50.0 100.0")
    assert {"billing", "one", "two", "en", "de", "other languages", OUT_OF_SCOPE} <= cells.keys()


def test_a_file_of_which_nothing_is_routed_is_an_error(folder, tmp_path, words, monkeypatch):
    """Requests without text reach the default tier, which must not look like a result."""
    body = {"model": "auto", "messages": [{"role": "user", "content": ""}]}
    path = traffic(tmp_path, {"id": "x/one/en/1", "request": body, "intent": "oos"})
    monkeypatch.setattr(wild, "patient", lambda model: Memory(words))
    monkeypatch.setattr("sys.argv", ["wild", str(path), "--intents", str(folder)])
    with pytest.raises(
        SystemExit, match=r"no row was matched with a cohort; the reasons are \{'no_text': 1\}"
    ) as exit_:
        wild.main()
    assert exit_.value.code != 0


def test_the_background_has_a_control_without_it(tmp_path, words):
    """The second row shares one word with billing and two with the background."""
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents"))
    (folder / "_background.yaml").write_text(
        "background: [zebras graze, zebras and lions graze, zebras graze here]\n"
    )
    path = traffic(
        tmp_path,
        {"id": "x/one/en/1", "text": BILL, "intent": "billing"},
        {"id": "x/two/en/2", "text": "zebras graze on my invoice", "intent": "oos"},
    )
    lines = list(wild.run_table(folder, path, Memory(words), tmp_path / "none"))
    cells = {line[:28].strip(): line[28:].split() for line in lines[3:]}
    assert {wild.OWN, wild.OWN_FOREIGN}.isdisjoint(cells)
    assert [cells[name][6] for name in ("all rows", "no background")] == ["0.0", "100.0"]  # out of scope on small
    (tmp_path / "languages.yaml").write_text("it: {out_of_scope: [zebras graze on my invoice]}\n")
    lines = list(wild.run_table(folder, path, Memory(words), tmp_path))
    at = next(i for i, line in enumerate(lines) if line.startswith(wild.OWN_FOREIGN))
    assert [line[28:].split()[6] for line in lines[at : at + 2]] == ["0.0", "100.0"]
