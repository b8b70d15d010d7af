"""Learning from labelled rows: better centroids are chosen, others are not, and no row is in two parts."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import yaml

from extproc.cli import evidence as commands
from extproc.cli import main as cli
from extproc.config.compile import centroids_digest, compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.backends import ADAPTED_FILE
from extproc.encoder.protocols import Vectors
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Execution, Memory, execute
from extproc.evidence.fit import adapted
from extproc.evidence.fit.adapt import Adaptation, adaptation_digest
from extproc.evidence.fit.adapted import adapted_encoder
from extproc.evidence.fit.centroid_kinds import (
    BLEND,
    HEAD,
    KINDS,
    PRESENT,
    UTTERANCES,
    Texts,
    k_means,
    kinds_for,
    matcher_of,
)
from extproc.evidence.fit.floors import choose_floors
from extproc.evidence.fit.folds import FOLDS, apart_folds, clusters_of, even_folds
from extproc.evidence.fit.labelled import LabelledRows, Matches, labelled_rows
from extproc.evidence.fit.learning import index_of, learn, texts_for_encoder
from extproc.evidence.fit.trial import EncoderCandidate, match_held_out, vectorise
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.index import Index, nearest
from extproc.settings import EncoderConfig
from tests.evidence.texts import letters, number_of

CONFIGS = Path(__file__).parents[1] / "configs"
D = 24


class Planted:
    """An encoder of texts "<group>-<letters>". The vectors of a group are scattered around one direction."""

    def __init__(self, directions: dict[str, Vectors], noise: float = 1.0) -> None:
        self._directions, self._noise = directions, noise

    def encode(self, texts: Sequence[str]) -> Vectors:
        rows = []
        for text in texts:
            group, _, number = text.partition("-")
            rng = np.random.default_rng([number_of(number), *group.encode()])
            rows.append(self._directions[group] + self._noise * rng.standard_normal(D) / np.sqrt(D))
        vectors = np.array(rows, dtype=np.float32)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def axis(*numbers: int) -> np.ndarray:
    return np.eye(D)[list(numbers)].sum(axis=0)


# Groups of texts. Requests for a, b and c differ from the utterances ua, ub and uc.
DIRECTIONS = {
    "a": axis(0, 1, 6), "b": axis(2, 3, 6), "c": axis(4, 5, 6), "oos": axis(6, 7),
    "ua": axis(0, 6, 6), "ub": axis(2, 6, 6), "uc": axis(4, 6, 6),
}  # fmt: skip


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = Path(shutil.copytree(CONFIGS / "good", tmp_path / "intents", ignore=shutil.ignore_patterns("[bc]*")))
    policy = yaml.safe_load((folder / "policy.yaml").read_text())
    (folder / "policy.yaml").write_text(yaml.safe_dump({k: v for k, v in policy.items() if k != "rules"}))
    for name in "abc":
        utterances = "".join(f"  - u{name}-{letters(i)}\n" for i in range(4))
        (folder / f"{name}.yaml").write_text(f"intent: {name}\ntier: small\nutterances:\n{utterances}")
    return folder


def write_requests_as_utterances(folder: Path) -> None:
    """Replace the utterances by texts like the requests, so that labelled rows add nothing."""
    for name in "abc":
        utterances = "".join(f"  - {name}-{letters(i)}\n" for i in range(9000, 9060))
        (folder / f"{name}.yaml").write_text(f"intent: {name}\ntier: small\nutterances:\n{utterances}")


def traffic(folder: Path, each: int, first: int = 0) -> Path:
    """Write `each` rows of each cohort, and half as many that are out of scope."""
    rows: list[dict[str, Any]] = [
        {"text": f"{name}-{letters(i)}", "intent": name} for name in "abc" for i in range(first, first + each)
    ]
    rows += [{"text": f"oos-{letters(i)}", "intent": None} for i in range(first, first + each // 2)]
    path = folder.parent / "labelled.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def executed(folder: Path, each: int, encoder: Planted) -> tuple[Execution, LabelledRows, list[EncoderCandidate]]:
    run = execute(folder, Memory(encoder), read_traffic(traffic(folder, each)), Tokens())
    return run, labelled_rows(run), [EncoderCandidate(run.config.policy.encoder, encoder)]


def accuracy(index: Index, encoder: Planted, first: int = 5000, count: int = 200) -> float:
    """Return the share of fresh texts whose nearest cohort is right."""
    right = [
        nearest(index, row).cohort == name
        for name in "abc"
        for row in encoder.encode([f"{name}-{letters(i)}" for i in range(first, first + count)])
    ]
    return float(np.mean(right))


# Better centroids


def test_labelled_rows_that_differ_from_the_utterances_give_better_centroids(folder):
    """Fresh texts are matched better, by as much as the held-out rows showed."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, candidates = executed(folder, 90, encoder)
    learned = learn(run, rows, candidates, "2026-11-22", 0)
    assert [way.kind for way in learned.trials] == [UTTERANCES, *KINDS]
    assert learned.chosen is not None and learned.config is not None and learned.config.fitted is not None
    assert learned.chosen.gain.low > 0
    before = accuracy(run.snapshot.index, encoder)
    after = accuracy(index_of(learned.config, encoder), encoder)
    assert after > before + 0.03
    assert learned.chosen.accuracy.low - 0.03 < after < learned.chosen.accuracy.high + 0.03
    assert learned.trials[0].accuracy.low - 0.03 < before < learned.trials[0].accuracy.high + 0.03
    header = learned.config.fitted.header
    assert (header.data, header.seed, header.kind) == (run.digest, 0, learned.chosen.kind)
    assert header.rows == len(rows.texts)


def test_rows_that_are_held_out_are_in_doubt_by_the_chances_of_tiers(folder):
    """There is more doubt if one of three like cohorts needs a costlier tier."""
    encoder = Planted(DIRECTIONS, noise=3.0)
    doubtful = {}
    for tier in ("small", "large"):
        (folder / "c.yaml").write_text((folder / "c.yaml").read_text().replace("tier: small", f"tier: {tier}"))
        run, rows, (candidate,) = executed(folder, 40, encoder)
        vectors = vectorise(run.config, candidate, rows.texts)
        fold, every = np.arange(len(rows.texts)) % 5, np.ones(len(rows.texts), dtype=bool)
        held_out = match_held_out(HEAD, vectors, rows, fold, every)
        assert held_out.likely is not None
        doubtful[tier] = (~held_out.likely & (held_out.landed != "c")).sum()
    assert doubtful["large"] > doubtful["small"]


def test_where_similarity_is_measured_is_kept_with_the_centroids(folder):
    """`back` serves as it was tried. The first trial serves without a file, so it has the default `back`."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, (near,) = executed(folder, 90, encoder)
    far = msgspec.structs.replace(near, back=1.0)
    learned, other = (learn(run, rows, [candidate], "2026-11-22", 0) for candidate in (far, near))
    assert learned.config is not None and learned.config.fitted is not None and learned.chosen is not None
    assert other.chosen is not None
    assert (learned.trials[0], learned.chosen.accuracy) == (other.trials[0], other.chosen.accuracy)
    assert learned.rows.matches.similarity.tolist() != other.rows.matches.similarity.tolist()
    assert learned.config.fitted.header.back == 1.0
    (row,) = encoder.encode(["a-faaa"])
    index = index_of(learned.config, encoder)
    match = nearest(index, row)
    assert index.means is not None
    assert match.similarity == pytest.approx(index.means[match.cohort] @ row)


def test_centroids_that_cannot_be_improved_are_unchanged(folder):
    """No file is written, and the reason is reported."""
    write_requests_as_utterances(folder)
    texts = "".join(f"  - oos-{letters(i)}\n" for i in range(9000, 9060))
    (folder / "_background.yaml").write_text(f"background:\n{texts}")
    encoder = Planted(DIRECTIONS, noise=1.2)
    learned = learn(*executed(folder, 90, encoder), "2026-11-22", 0)
    assert (learned.chosen, learned.raw, learned.config.fitted) == (None, b"", None)
    assert learned.why.startswith("matching is unchanged: no other is better by more than chance; more rows")


def test_a_cohort_of_several_kinds_gets_several_centroids(folder):
    """One mean would lie between the two kinds and beside another cohort."""
    a = {"a": axis(0), "ua": axis(0)}
    encoder = Planted(DIRECTIONS | a | {"oos": axis(20)} | {"b": axis(0, 2), "ub": axis(0, 2)}, noise=0.5)

    class TwoKinds(Planted):
        """Every other text of a is on the far side of b."""

        def encode(self, texts: Sequence[str]) -> Vectors:
            moved = [f"z{t}" if t.startswith("a-") and number_of(t[2:]) % 2 else t for t in texts]
            return encoder.encode(moved)

    encoder._directions["za"] = axis(2)
    two = TwoKinds({})
    learned = learn(*executed(folder, 150, two), "2026-11-22", 0)
    assert learned.chosen is not None and learned.config is not None and learned.config.fitted is not None
    assert learned.chosen.kind in ("several, fitted", "head")
    assert learned.config.fitted.header.cohorts["a"] == 3
    assert accuracy(index_of(learned.config, two), two) > 0.95


def test_k_means_finds_groups_of_similar_rows():
    """Each mean belongs to one group, in any order. With one group the result is its mean."""
    encoder = Planted({"x": axis(0), "y": axis(1)}, noise=0.3)
    rows = encoder.encode([f"{group}-{letters(i)}" for i in range(20) for group in "xy"])
    means = k_means(rows, 2)
    assert sorted(means[:, :2].argmax(axis=1).tolist()) == [0, 1]
    assert (means[:, :2].max(axis=1) > 0.9).all()
    assert k_means(rows, 1)[0] == pytest.approx(rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)), abs=1e-6)
    assert np.isfinite(k_means(rows[[0, 0, 0]], 3)).all()


# Rows that are held out


def test_no_row_is_matched_by_a_fit_on_it(folder):
    """With every label of one fold changed, the matches of that fold are the same to the last bit."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, (candidate,) = executed(folder, 30, encoder)
    vectors = vectorise(run.config, candidate, rows.texts)
    fold = apart_folds(clusters_of(vectors.rows, rows.groups))
    every = np.ones(len(rows.texts), dtype=bool)
    for kind in KINDS:
        for k in (0, FOLDS - 1):
            here = fold == k
            changed = msgspec.structs.replace(rows, labels=np.where(here, "c", rows.labels))
            first, second = (match_held_out(kind, vectors, each, fold, every) for each in (rows, changed))
            assert first.landed[here].tolist() == second.landed[here].tolist()
            assert first.matches.margin[here].tolist() == second.matches.margin[here].tolist()
            assert first.matches.margin[~here].tolist() != second.matches.margin[~here].tolist()


def test_rows_that_are_alike_are_in_one_fold():
    """Groups are never split, and rows with similar vectors are held out together, in folds of about equal size."""
    encoder = Planted({"x": axis(0), "y": axis(1), "z": axis(2)}, noise=0.3)
    texts = [f"{group}-{letters(i)}" for group in "xyz" for i in range(20)]
    groups = np.arange(60) // 2
    apart = apart_folds(clusters_of(encoder.encode(texts), groups))
    assert [len({*apart[i : i + 20].tolist()}) for i in (0, 20, 40)] == [1, 1, 1]
    assert len({*apart.tolist()}) == 3
    even = even_folds(texts, [text[0] for text in texts], groups, seed=0)
    assert (even[::2] == even[1::2]).all()
    assert all(np.bincount(even[i : i + 20], minlength=FOLDS).tolist() == [4] * FOLDS for i in (0, 20, 40))
    assert even.tolist() != even_folds(texts, [text[0] for text in texts], groups, seed=1).tolist()


def test_rows_of_one_group_are_learned_from_once():
    """Twenty repetitions of a row change nothing."""
    encoder = Planted(DIRECTIONS, noise=1.0)
    utterances = {name: encoder.encode([f"u{name}-{letters(i)}" for i in range(4)]) for name in "abc"}
    rows, labels = encoder.encode(["a-b", "b-c", "c-d", "oos-e"]), np.array(["a", "b", "c", None], dtype=object)
    texts = Texts(utterances, encoder.encode(["oos-a", "oos-b"]))
    for kind in KINDS:
        once = matcher_of(kind, texts.joined(rows, labels, np.arange(4)))
        often = matcher_of(kind, texts.joined(rows.repeat(20, axis=0), labels.repeat(20), np.arange(4).repeat(20)))
        for name in "abc":
            assert often.centroids[name] == pytest.approx(once.centroids[name], abs=1e-5)
        if once.head is not None and often.head is not None:
            assert often.head.weights == pytest.approx(once.head.weights, abs=1e-2)


def test_an_adapted_encoder_is_tried_on_rows_that_it_has_not_seen(folder):
    """Its floors are fitted on them, too. Rows out of scope join the background, which is a separate cohort."""
    (folder / "_background.yaml").write_text("background:\n  - oos-haaaa\n  - oos-haaab\n  - oos-haaac\n")
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, (candidate,) = executed(folder, 90, encoder)
    learned = learn(run, rows, [candidate, candidate], "2026-11-22", 0)
    trained = texts_for_encoder(run, rows, 0)
    assert trained["a"][:4] == ["ua-a", "ua-b", "ua-c", "ua-d"]
    assert trained["_background.yaml"][:3] == ["oos-haaaa", "oos-haaab", "oos-haaac"]
    assert len(trained["_background.yaml"]) == 3 + 27
    assert not {*learned.rows.texts} & {text for texts in trained.values() for text in texts}
    assert len(learned.rows.texts) == pytest.approx(2 / FOLDS * len(rows.texts), abs=3)


def test_without_rows_to_try_them_on_nothing_is_tried(folder):
    """Then floors are fitted on matches as they are."""
    run, rows, candidates = executed(folder, 20, Planted(DIRECTIONS))
    outside = rows.subset(~rows.inside)
    learned = learn(run, outside, candidates, "2026-11-22", 0)
    assert (learned.trials, learned.rows.texts) == ((), outside.texts)
    assert learned.why == "matching is unchanged: no labelled row in scope is left to try others on"


def test_the_stated_risk_holds_with_learned_centroids():
    """The mean share of wrong matches over many fits is within the risk. Floors on learned rows exceed it."""
    rng = np.random.default_rng(0)
    wide = 4 * D
    means = np.eye(wide)[[0, 1, 2, 3]] + np.eye(wide)[4]
    labels_of = np.array(["a", "b", "c", "oos"], dtype=object)

    def drawn(count: int) -> tuple[Vectors, np.ndarray]:
        group = rng.choice(4, count, p=[0.3, 0.3, 0.3, 0.1])
        rows = means[group] + 0.4 * rng.standard_normal((count, wide))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32), labels_of[group]

    def matches(centroids: dict[str, Vectors], rows: Vectors, labels: np.ndarray) -> Matches:
        similarities = rows @ np.concatenate(list(centroids.values())).T
        best = np.sort(similarities, axis=1)
        right = np.array([*centroids], dtype=object)[similarities.argmax(axis=1)] == labels
        return Matches(best[:, -1].astype(float), (best[:, -1] - best[:, -2]).astype(float), right)

    honest: list[float] = []
    leaky: list[float] = []
    for _ in range(80):
        rows, labels = drawn(60)
        utterances = {name: rows[labels == name][:2] for name in "abc"}
        known = np.where(labels == "oos", np.array(None), labels)
        joined = Texts(utterances, rows[:0]).joined(
            rows[labels != "oos"], known[labels != "oos"], np.arange(60)[labels != "oos"]
        )
        centroids = dict(matcher_of("fitted", joined).centroids)
        fresh = matches(centroids, *drawn(2000))
        for wrong, part in ((honest, matches(centroids, *drawn(60))), (leaky, matches(centroids, rows, labels))):
            floors = choose_floors(part, 0.1, "margin")
            accepted = fresh.accepted(*floors) if floors is not None else np.zeros(2000, dtype=bool)
            wrong.append((accepted & ~fresh.right).sum() / max(accepted.sum(), 1))
    assert np.mean(honest) <= 0.1 + 2 * np.std(honest) / np.sqrt(len(honest))
    assert np.mean(leaky) > 0.1 + 3 * np.std(leaky) / np.sqrt(len(leaky))


def test_a_source_is_matched_by_fits_without_it(folder):
    """With every label of one source changed, its own matches are the same to the last bit. Others are not."""
    (folder / "_background.yaml").write_text("background:\n  - oos-haaaa\n  - oos-haaab\n  - oos-haaac\n")
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, candidates = executed(folder, 60, encoder)
    sources = np.array([f"s{number_of(text.partition('-')[2]) % 3}" for text in rows.texts], dtype=object)
    here = sources == "s1"
    first, second = (
        learn(run, msgspec.structs.replace(rows, labels=labels, sources=sources), candidates, "2026-11-22", 0)
        for labels in (rows.labels, np.where(here & (np.arange(len(here)) % 5 == 0), "c", rows.labels))
    )
    assert [way.kind for way in first.trials] == [UTTERANCES, BLEND]
    assert first.chosen is not None and second.chosen is not None
    matched, changed = first.rows.matches.margin, second.rows.matches.margin
    assert matched[here].tolist() == changed[here].tolist()
    assert matched[~here].tolist() != changed[~here].tolist()


def test_a_blended_head_is_half_way_between_two(folder):
    """One is fitted without the rows in scope. Both have the same background."""
    encoder = Planted(DIRECTIONS, noise=1.0)
    utterances = {name: encoder.encode([f"u{name}-{letters(i)}" for i in range(4)]) for name in "abc"}
    texts = Texts(utterances, encoder.encode(["oos-a", "oos-b"]))
    rows, labels = encoder.encode(["a-b", "b-c", "oos-d"]), np.array(["a", "b", None], dtype=object)
    joined = texts.joined(rows, labels, np.arange(3))
    whole, blended = (matcher_of(kind, joined, utterances).head for kind in (HEAD, BLEND))
    alone = matcher_of(HEAD, Texts(utterances, joined.background)).head
    assert whole is not None and blended is not None and alone is not None
    assert blended.weights == pytest.approx((whole.weights + alone.weights) / 2)
    assert blended.bias == pytest.approx((whole.bias + alone.bias) / 2)


@pytest.mark.parametrize(
    ("background", "several_sources", "kinds"),
    [(False, False, KINDS), (True, False, (HEAD, BLEND)), (True, True, (BLEND,)), (False, True, (BLEND,))],
)
def test_a_way_without_chances_is_not_tried_where_chances_choose_the_tier(background, several_sources, kinds):
    """Rows of several sources are matched in the way that is safe for further ones."""
    assert kinds_for(background, several_sources) == kinds


# The command


@pytest.fixture
def encoder(monkeypatch) -> Planted:
    planted = Planted(DIRECTIONS, noise=1.6)
    monkeypatch.setattr(commands, "patient", lambda model: Memory(planted))
    monkeypatch.setattr("extproc.encoder.backends.load_encoder", lambda model: planted)
    return planted


def calibrate(folder: Path, data: Path, *options: str) -> int:
    arguments = ["--risk", "0.2", "--date", "2026-11-22", *options]
    return cli.main(["calibrate", "--intents", str(folder), str(data), *arguments])


def test_few_rows_an_intent_are_tried_and_few_in_all_change_nothing(folder, encoder, capsys):
    """Cohorts with few rows share one margin. Too few rows in all leave every file as it is."""
    write_requests_as_utterances(folder)
    assert calibrate(folder, traffic(folder, 15), "--risk", "0.05", "--write") == 0
    shown = capsys.readouterr().out
    assert " labelled rows in scope that it was not fitted on" in shown
    assert "  pool\n" in shown and "\nthe pool" in shown
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    few = traffic(folder, 10, first=100)  # the words of the first numbers are courtesies: "a-i" names no task
    assert calibrate(folder, few, "--risk", "0.01", "--write") == 0
    assert (
        "\nfloors are unchanged: a risk of 1 % needs 100 distinct labelled rows; has 35\n"
        in capsys.readouterr().out
    )
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_the_command_shows_the_trials_and_writes_the_file_only_if_asked(folder, encoder, capsys):
    """The written file serves, evidence and `check` name it, and a second run changes nothing."""
    data = traffic(folder, 90)
    assert calibrate(folder, data) == 0
    shown = capsys.readouterr().out
    assert [line.split("  ")[0] for line in shown.partition("gain\n")[2].splitlines()[: 1 + len(KINDS)]] == [
        UTTERANCES,
        *KINDS,
    ]
    assert "\nchosen: " in shown
    assert f"\n{folder / CENTROIDS_FILE}: " in shown
    assert not (folder / CENTROIDS_FILE).exists()

    assert calibrate(folder, data, "--write") == 0
    config = load_config(folder)
    assert config.fitted is not None
    snapshot = compile_snapshot(config, encoder)
    calibrated = [cohort for cohort in snapshot.policy.cohorts.values() if cohort.calibrated]
    assert calibrated and all(c.evidence and c.evidence.centroids == centroids_digest(config) for c in calibrated)
    capsys.readouterr()
    assert cli.main(["check", str(folder)]) == 0
    assert f"centroids.safetensors: {config.fitted.header}; " in capsys.readouterr().out

    assert calibrate(folder, data, "--write") == 0
    assert capsys.readouterr().out.endswith("\nnothing to change\n")


def test_the_figures_of_each_source_are_printed(folder, encoder, capsys):
    """Rows without a source are one source. With only one, the report says what the figures hold for."""
    write_requests_as_utterances(folder)
    data = traffic(folder, 40)
    assert calibrate(folder, data) == 0
    shown = capsys.readouterr().out
    assert "\nall rows are of one source, so these figures hold for rows like them." in shown
    rows = [msgspec.json.decode(line) for line in data.read_bytes().splitlines()]
    for i, row in enumerate(rows):
        if i % 3:
            row["source"] = f"app {i % 3}"
    data.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    assert calibrate(folder, data) == 0
    shown = capsys.readouterr().out
    assert "the measures are by fits without the source of the row\n" in shown
    table = shown.partition("by matches and floors without this source\n")[2].splitlines()[:4]
    assert [line[:22].strip() for line in table[:3]] == ["app 1", "app 2", "no source"]
    assert table[3].startswith("on a new source like these: ")
    assert table[3].endswith("of the accepted are wrong; the interval is over 3 sources")
    assert (
        shown.splitlines()[0]
        .partition(": ")[2]
        .startswith("in 3 calibrated cohorts, of sources that were left out, ")
    )


def test_check_reports_a_stale_file_and_refuses_a_damaged_one(folder, encoder, capsys, caplog):
    """It names the file. It exits with 2 for a damaged file."""
    calibrate(folder, traffic(folder, 90), "--write")
    with (folder / "a.yaml").open("a") as file:
        file.write("  - ua-hh\n")
    assert cli.main(["check", str(folder)]) == 0
    assert "centroids.safetensors is stale, centroids come from the utterances alone: utterances" in caplog.text
    assert "stale (utterances or centroids changed since `extproc calibrate`): a" in capsys.readouterr().out
    (folder / CENTROIDS_FILE).write_bytes((folder / CENTROIDS_FILE).read_bytes()[:-1])
    assert cli.main(["check", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"{folder / CENTROIDS_FILE}:1: is not a centroid file")


def test_a_file_is_tried_on_rows_that_it_was_not_fitted_on(folder, encoder):
    """The file knows its rows. With too few others, the utterances alone are the first way to compare with."""
    calibrate(folder, traffic(folder, 90), "--write")
    run, rows, candidates = executed(folder, 90, encoder)
    assert run.config.fitted is not None and rows.seen.all()
    again = learn(run, rows, candidates, "2026-11-22", 0)
    assert (again.trials[0].kind, again.raw) == (UTTERANCES, (folder / CENTROIDS_FILE).read_bytes())
    seen, inside = len(rows.texts), int(rows.inside.sum())
    run, rows, candidates = executed(folder, 240, encoder)
    assert int(rows.seen.sum()) == seen
    learned = learn(run, rows, candidates, "2026-11-22", 0)
    assert (learned.trials[0].kind, learned.trials[0].accuracy.rows) == (PRESENT, int(rows.inside.sum()) - inside)
    assert not {*learned.rows.texts} & {text for text, seen in zip(rows.texts, rows.seen, strict=True) if seen}


# An adapted encoder


@pytest.fixture
def adapts(monkeypatch) -> list[dict[str, list[str]]]:
    """Replace `adapt` by a function without weights, and return the texts that it was called with."""
    calls: list[dict[str, list[str]]] = []

    def adapt(model, texts, folder, date):
        calls.append(dict(texts))
        folder.mkdir()
        (folder / "model.safetensors").write_bytes(str(len(calls)).encode())
        adaptation = Adaptation(model, adaptation_digest(texts), len(texts), 0, 8, 0, 0.75, 0.5, date)
        (folder / ADAPTED_FILE).write_bytes(msgspec.json.encode(adaptation))

    monkeypatch.setattr(adapted, "adapt", adapt)
    return calls


def test_an_encoder_is_adapted_once_and_named_by_its_weights(tmp_path, adapts):
    """An existing encoder for these texts is reused. An adapted encoder is replaced by its original model."""
    first = adapted_encoder("all-MiniLM-L6-v2", {"a": ["x"], "b": ["y"]}, tmp_path / "encoders", "2026-11-22")
    assert first.parent == tmp_path / "encoders"
    assert first.name == "all-MiniLM-L6-v2-6b86b273ff34"
    again = adapted_encoder(str(first), {"a": ["x"], "b": ["y"]}, tmp_path / "encoders", "2026-11-23")
    assert (again, len(adapts)) == (first, 1)
    other = adapted_encoder(str(first), {"a": ["x"], "b": ["z"]}, tmp_path / "encoders", "2026-11-23")
    assert (other.name, len(adapts)) == ("all-MiniLM-L6-v2-d4735e3a265e", 2)
    assert msgspec.json.decode((other / ADAPTED_FILE).read_bytes())["model"] == "all-MiniLM-L6-v2"
    assert sorted(path.name for path in (tmp_path / "encoders").iterdir()) == sorted([first.name, other.name])


def test_an_adapted_encoder_that_is_better_is_named_in_the_policy(folder, adapts, monkeypatch, capsys):
    """Centroids and floors are fitted for it. Its folder is written relative to the YAML."""
    frozen, better = Planted(DIRECTIONS, noise=2.4), Planted(DIRECTIONS, noise=0.6)
    monkeypatch.setattr(commands, "patient", lambda m: Memory(better if "encoders" in m else frozen))
    data, encoders = traffic(folder, 120), folder.parent / "encoders"
    assert calibrate(folder, data, "--adapt", str(encoders), "--write") == 0
    name = "all-MiniLM-L6-v2-6b86b273ff34"
    assert f'\n+encoder: {{model: "../encoders/{name}"}}\n' in capsys.readouterr().out
    config = load_config(folder)
    assert config.policy.encoder == EncoderConfig(model=str(encoders / name))
    assert config.fitted is not None and config.fitted.header.encoder == name
    cohorts = compile_snapshot(config, better).policy.cohorts.values()
    assert all(cohort.calibrated and cohort.evidence and cohort.evidence.encoder == name for cohort in cohorts)
    assert [*adapts[0]] == ["a", "b", "c", "_background.yaml"]


def test_an_adapted_encoder_that_is_not_better_is_not_served(folder, adapts, encoder):
    """It was made and tried. Its folder stays, but the policy does not name it."""
    before = load_config(folder).policy
    calibrate(folder, traffic(folder, 90), "--adapt", str(folder.parent / "encoders"), "--write")
    after = load_config(folder)
    assert (after.policy, len(adapts)) == (before, 1)
    assert after.fitted is None or after.fitted.header.encoder == "all-MiniLM-L6-v2"
