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
from extproc.evidence.fit.centroid_kinds import KINDS, by_label, centroids_of, k_means
from extproc.evidence.fit.floors import choose_floors
from extproc.evidence.fit.labelled import LabelledRows, Matches, labelled_rows
from extproc.evidence.fit.learning import (
    FittedCentroids,
    index_of,
    learn,
    needed_rows,
    split_after,
    texts_for_encoder,
    too_few,
)
from extproc.evidence.fit.partition import FIT_SHARE, LEARN_SHARE, hash_fraction
from extproc.evidence.fit.trial import EncoderCandidate
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.index import Index, nearest
from extproc.settings import EncoderConfig

CONFIGS = Path(__file__).parents[1] / "configs"
D = 24


class Planted:
    """An encoder of texts "<group>-<number>". The vectors of a group are scattered around one direction."""

    def __init__(self, directions: dict[str, Vectors], noise: float = 1.0) -> None:
        self._directions, self._noise = directions, noise

    def encode(self, texts: Sequence[str]) -> Vectors:
        rows = []
        for text in texts:
            group, _, number = text.partition("-")
            rng = np.random.default_rng([int(number), *group.encode()])
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
        utterances = "".join(f"  - u{name}-{i}\n" for i in range(4))
        (folder / f"{name}.yaml").write_text(f"intent: {name}\ntier: small\nutterances:\n{utterances}")
    return folder


def write_requests_as_utterances(folder: Path) -> None:
    """Replace the utterances by texts like the requests, so that labelled rows add nothing."""
    for name in "abc":
        utterances = "".join(f"  - {name}-{i}\n" for i in range(9000, 9060))
        (folder / f"{name}.yaml").write_text(f"intent: {name}\ntier: small\nutterances:\n{utterances}")


def traffic(folder: Path, each: int, first: int = 0) -> Path:
    """Write `each` rows of each cohort, and half as many that are out of scope."""
    rows: list[dict[str, Any]] = [
        {"text": f"{name}-{i}", "intent": name} for name in "abc" for i in range(first, first + each)
    ]
    rows += [{"text": f"oos-{i}", "intent": None} for i in range(first, first + each // 2)]
    path = folder.parent / "labelled.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def executed(folder: Path, each: int, encoder: Planted) -> tuple[Execution, LabelledRows, list[EncoderCandidate]]:
    run = execute(folder, Memory(encoder), read_traffic(traffic(folder, each)), Tokens())
    return run, labelled_rows(run, 0), [EncoderCandidate(run.config.policy.encoder, encoder)]


def accuracy(index: Index, encoder: Planted, first: int = 5000, count: int = 200) -> float:
    """Return the share of fresh texts whose nearest cohort is right."""
    right = [
        nearest(index, row).cohort == name
        for name in "abc"
        for row in encoder.encode([f"{name}-{i}" for i in range(first, first + count)])
    ]
    return float(np.mean(right))


# Better centroids


def test_labelled_rows_that_differ_from_the_utterances_give_better_centroids(folder):
    """Fresh texts are matched better, by as much as the held-out rows showed."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, candidates = executed(folder, 90, encoder)
    learned = learn(run, rows, candidates, "2026-11-22", 0)
    assert [way.kind for way in learned.trials] == list(KINDS)
    assert learned.chosen is not None and learned.config is not None and learned.config.fitted is not None
    assert learned.chosen.gain.low > 0
    before = accuracy(run.snapshot.index, encoder)
    after = accuracy(index_of(learned.config, encoder), encoder)
    assert after > before + 0.03
    assert learned.chosen.accuracy.low - 0.03 < after < learned.chosen.accuracy.high + 0.03
    assert learned.trials[0].accuracy.low - 0.03 < before < learned.trials[0].accuracy.high + 0.03
    header = learned.config.fitted.header
    assert (header.data, header.seed, header.kind) == (run.digest, 0, learned.chosen.kind)
    assert header.rows == int(((rows.fraction < LEARN_SHARE) & (rows.labels != None)).sum())  # noqa: E711


def test_where_similarity_is_measured_is_kept_with_the_centroids(folder):
    """`back` serves as it was tried. The first trial serves without a file, so it has the default `back`."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, (near,) = executed(folder, 90, encoder)
    far = msgspec.structs.replace(near, back=1.0)
    learned, other = (learn(run, rows, [candidate], "2026-11-22", 0) for candidate in (far, near))
    assert learned.config is not None and learned.config.fitted is not None and learned.chosen is not None
    assert other.chosen is not None
    assert (learned.trials[0], learned.chosen.accuracy) == (other.trials[0], other.chosen.accuracy)
    assert learned.chosen.auroc != other.chosen.auroc
    assert learned.config.fitted.header.back == 1.0
    (row,) = encoder.encode(["a-5000"])
    index = index_of(learned.config, encoder)
    match = nearest(index, row)
    assert index.means is not None
    assert match.similarity == pytest.approx(index.means[match.cohort] @ row)


def test_centroids_that_cannot_be_improved_are_unchanged(folder):
    """No file is written, and the reason is reported."""
    write_requests_as_utterances(folder)
    encoder = Planted(DIRECTIONS, noise=1.2)
    learned = learn(*executed(folder, 90, encoder), "2026-11-22", 0)
    assert (learned.chosen, learned.raw, learned.config) == (None, b"", None)
    assert learned.why.startswith("centroids are unchanged: no others are better by more than chance; more rows")


def test_a_cohort_of_several_kinds_gets_several_centroids(folder):
    """One mean would lie between the two kinds and beside another cohort."""
    a = {"a": axis(0), "ua": axis(0)}
    encoder = Planted(DIRECTIONS | a | {"oos": axis(20)} | {"b": axis(0, 2), "ub": axis(0, 2)}, noise=0.5)

    class TwoKinds(Planted):
        """Every other text of a is on the far side of b."""

        def encode(self, texts: Sequence[str]) -> Vectors:
            moved = [f"z{t}" if t.startswith("a-") and int(t[2:]) % 2 else t for t in texts]
            return encoder.encode(moved)

    encoder._directions["za"] = axis(2)
    two = TwoKinds({})
    learned = learn(*executed(folder, 150, two), "2026-11-22", 0)
    assert learned.chosen is not None and learned.config is not None and learned.config.fitted is not None
    assert learned.chosen.kind == "several, fitted"
    assert learned.config.fitted.header.cohorts["a"] == 3
    assert accuracy(index_of(learned.config, two), two) > 0.95


def test_k_means_finds_groups_of_similar_rows():
    """Each mean belongs to one group, in any order. With one group the result is its mean."""
    encoder = Planted({"x": axis(0), "y": axis(1)}, noise=0.3)
    rows = encoder.encode([f"{group}-{i}" for i in range(20) for group in "xy"])
    means = k_means(rows, 2)
    assert sorted(means[:, :2].argmax(axis=1).tolist()) == [0, 1]
    assert (means[:, :2].max(axis=1) > 0.9).all()
    assert k_means(rows, 1)[0] == pytest.approx(rows.mean(axis=0) / np.linalg.norm(rows.mean(axis=0)), abs=1e-6)
    assert np.isfinite(k_means(rows[[0, 0, 0]], 3)).all()


# Parts that are not used


def test_nothing_is_learned_from_rows_of_the_other_parts(folder):
    """With every label outside the first part changed, the file is the same to the last bit."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, candidates = executed(folder, 90, encoder)

    def fitted(labels: np.ndarray) -> bytes:
        return learn(run, msgspec.structs.replace(rows, labels=labels), candidates, "2026-11-22", 0).raw

    other, raw = rows.fraction >= LEARN_SHARE, fitted(rows.labels)
    assert raw == fitted(np.where(other, rows.labels[::-1], rows.labels)) != b""
    assert raw != fitted(np.where(~other, rows.labels[::-1], rows.labels))


def test_floors_are_fitted_on_rows_that_nothing_was_learned_from(folder):
    """This holds for unchanged centroids, too. No adapted encoder has seen the rows that it is tried on."""
    encoder = Planted(DIRECTIONS, noise=1.6)
    run, rows, candidates = executed(folder, 90, encoder)
    learned = learn(run, rows, candidates, "2026-11-22", 0)
    middle = ((rows.fraction >= LEARN_SHARE) & (rows.fraction < FIT_SHARE)).tolist()
    for result in (learned, msgspec.structs.replace(learned, config=None, raw=b"", encoder=None, chosen=None)):
        split = split_after(run, rows, result)
        assert split.fit.tolist() == middle
        assert split.report.tolist() == (rows.fraction >= FIT_SHARE).tolist()
        assert split.fit_share == FIT_SHARE - LEARN_SHARE
    by_cohort = texts_for_encoder(run, rows)
    labelled = [text for name, texts in by_cohort.items() for text in texts if text.startswith(f"{name}-")]
    fractions = [hash_fraction(text, 0) for text in labelled]
    assert min(fractions) >= LEARN_SHARE / 4 and max(fractions) < LEARN_SHARE
    assert by_cohort["a"][:4] == ["ua-0", "ua-1", "ua-2", "ua-3"]


def test_without_rows_to_try_them_on_nothing_is_tried(folder):
    """A few rows may all be in other parts. Then floors may be fitted on all of them."""
    run, rows, candidates = executed(folder, 20, Planted(DIRECTIONS))
    others = rows.subset(rows.fraction >= LEARN_SHARE)
    learned = learn(run, others, candidates, "2026-11-22", 0)
    assert (learned.trials, learned.rows) == ((), 0)
    assert learned.why == "centroids are unchanged: no labelled row in scope is left to try others on"
    assert split_after(run, others, learned).fit_share == FIT_SHARE


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
        centroids = centroids_of(
            "fitted", utterances, by_label(rows, np.where(labels == "oos", np.array(None), labels))
        )
        fresh = matches(centroids, *drawn(2000))
        for wrong, part in ((honest, matches(centroids, *drawn(60))), (leaky, matches(centroids, rows, labels))):
            floors = choose_floors(part, 0.1, "margin")
            accepted = fresh.accepted(*floors) if floors is not None else np.zeros(2000, dtype=bool)
            wrong.append((accepted & ~fresh.right).sum() / max(accepted.sum(), 1))
    assert np.mean(honest) <= 0.1 + 2 * np.std(honest) / np.sqrt(len(honest))
    assert np.mean(leaky) > 0.1 + 3 * np.std(leaky) / np.sqrt(len(leaky))


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


def test_too_few_rows_leave_centroids_unchanged_and_the_reason_gives_the_number(folder, encoder, capsys):
    """Then floors are fitted on all rows that are not reported on."""
    run, rows, _ = executed(folder, 10, encoder)
    assert needed_rows(0.2) == 17
    assert too_few(run, rows, 0.2) == (
        "fitting them, too, needs about 17 labelled rows in most cohorts; 0 of 3 cohorts have that many"
    )
    assert calibrate(folder, traffic(folder, 10), "--write") == 0
    shown = capsys.readouterr().out
    assert shown.startswith("centroids are unchanged: fitting them, too, needs about 17 labelled rows")
    assert not (folder / CENTROIDS_FILE).exists()


def test_the_command_shows_the_trials_and_writes_the_file_only_if_asked(folder, encoder, capsys):
    """The written file serves, evidence and `check` name it, and a second run changes nothing."""
    data = traffic(folder, 90)
    assert calibrate(folder, data) == 0
    shown = capsys.readouterr().out
    assert [line.split("  ")[0] for line in shown.splitlines()[2 : 2 + len(KINDS)]] == list(KINDS)
    assert "\nchosen: " in shown and "\non 1" in shown
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


def test_check_reports_a_stale_file_and_refuses_a_damaged_one(folder, encoder, capsys, caplog):
    """It names the file. It exits with 2 for a damaged file."""
    calibrate(folder, traffic(folder, 90), "--write")
    with (folder / "a.yaml").open("a") as file:
        file.write("  - ua-77\n")
    assert cli.main(["check", str(folder)]) == 0
    assert "centroids.safetensors is stale, centroids come from the utterances alone: utterances" in caplog.text
    assert "stale (utterances or centroids changed since `extproc calibrate`): a" in capsys.readouterr().out
    (folder / CENTROIDS_FILE).write_bytes((folder / CENTROIDS_FILE).read_bytes()[:-1])
    assert cli.main(["check", str(folder)]) == 2
    assert capsys.readouterr().err.startswith(f"{folder / CENTROIDS_FILE}:1: is not a centroid file")


def test_few_new_rows_fit_no_floors_on_rows_of_the_current_centroids(folder, encoder):
    """The seed in the file of centroids determines its rows."""
    calibrate(folder, traffic(folder, 90), "--write", "--seed", "3")
    run, rows, _ = executed(folder, 10, encoder)
    assert run.config.fitted is not None
    split = split_after(run, rows, FittedCentroids(0, (), "too few"))
    seen = np.array([hash_fraction(text, 3) < LEARN_SHARE for text in rows.texts])
    assert seen.any()
    assert split.fit.tolist() == ((rows.fraction < FIT_SHARE) & ~seen).tolist()
    assert split.report.tolist() == ((rows.fraction >= FIT_SHARE) & ~seen).tolist()


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
    frozen, better = Planted(DIRECTIONS, noise=1.6), Planted(DIRECTIONS, noise=0.6)
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
    assert {text for texts in adapts[0].values() for text in texts if hash_fraction(text, 0) >= LEARN_SHARE} <= {
        f"u{name}-{i}" for name in "abc" for i in range(4)
    }


def test_an_adapted_encoder_that_is_not_better_is_not_served(folder, adapts, encoder):
    """It was made and tried. Its folder stays, but the policy does not name it."""
    before = load_config(folder).policy
    calibrate(folder, traffic(folder, 90), "--adapt", str(folder.parent / "encoders"), "--write")
    after = load_config(folder)
    assert (after.policy, len(adapts)) == (before, 1)
    assert after.fitted is None or after.fitted.header.encoder == "all-MiniLM-L6-v2"
