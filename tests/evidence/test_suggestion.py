"""Suggesting intents from clusters out of scope and from labels without an intent, and borderline utterances."""

import shutil
from pathlib import Path

import msgspec
import pytest

from extproc.cli import evidence as commands
from extproc.cli.main import main
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.evidence.data.tokens import Tokens
from extproc.evidence.data.traffic import read_traffic
from extproc.evidence.execution import Memory, execute
from extproc.evidence.fit.suggestion import (
    BorderlineUtterance,
    Proposal,
    _Names,
    as_yaml,
    borderline_utterances,
    propose,
)
from tests.evidence.folders import good_folder

CONFIGS = Path(__file__).parents[1] / "configs"
FLIGHTS = [
    {"text": f"when will flight {place} leave"}
    for place in ("Oslo", "Rome", "Paris", "Lima", "Cairo", "Bern", "Quito", "Riga", "Bonn")
]
TUNES = [{"text": f"play tune {name} again", "intent": "music"} for name in "abcdefghij"]
NOISE = [{"text": text} for text in ("zebras graze", "blue paint dries", "wind turbines hum")]
BILLS = [{"text": f"Is my invoice wrong this month {i}"} for i in range(3)]


@pytest.fixture
def folder(tmp_path):
    return good_folder(tmp_path / "intents", floor=0.2)


def traffic(tmp_path, rows):
    path = tmp_path / "traffic.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    return path


def test_clusters_and_labels_out_of_scope_are_proposed(folder, tmp_path, words):
    """Most rows come first. Isolated texts, texts in scope, and texts labelled with an intent are not proposed."""
    bills = [row | {"intent": "billing"} for row in FLIGHTS]
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(traffic(tmp_path, [*FLIGHTS, *TUNES, *NOISE, *BILLS])), Tokens())
    music, flights = propose(run, memory)
    assert (music.name, music.rows, music.labelled) == ("music", 10, True)
    assert (flights.name, flights.rows, flights.labelled) == ("flight-leave", 9, False)
    assert set(flights.utterances) == {row["text"] for row in FLIGHTS}
    run = execute(folder, memory, read_traffic(traffic(tmp_path, [*bills, *BILLS])), Tokens())
    assert propose(run, memory) == []


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        (
            (
                "What is the weather in Paris tomorrow?",
                "What is the weather like in Rome today",
                "Will it rain in Oslo?",
                "Give me the weather for Lima",
                "How cold will the weather be in Berlin?",
                "Is the weather good in Bern?",
            ),
            "weather",
        ),
        (
            (
                "How do I reset my password?",
                "I forgot my password, reset it please",
                "What if the reset of a password fails",
                "Can you reset the password for me",
                "reset the password of my account",
                "Where do I reset a password",
            ),
            "reset-password",
        ),
        (
            (
                "Was ist die Hauptstadt von Peru?",
                "Nenne mir die Hauptstadt",
                "Wie heißt Omans Hauptstadt?",
                "Welche Hauptstadt hat Mali?",
            ),
            "hauptstadt",
        ),
    ],
)
def test_a_name_has_the_words_that_tell_a_cluster_apart(texts, name):
    """Words like `what` and `the` are as frequent elsewhere. The order is that of the texts."""
    elsewhere = [
        "What is the sum of the two numbers?",
        "Give me the date of the invoice",
        "How do I cook the rice for my friends?",
        "Can you tell me what the law says",
        "I want to know if the flight is late",
        "Will it work for me in the office?",
        "Was ist die Summe von zwei Zahlen?",
        "Nenne mir die Namen von allen",
        "die Rechnung von gestern",
        "Wer hat die Post?",
        "Wo liegt die Mappe von Kai?",
        "Kopiere die Liste von heute",
    ]
    assert _Names([*texts, *elsewhere], elsewhere).of(texts) == name


def test_a_proposal_is_an_intent_that_loads(folder, tmp_path, words, monkeypatch, capsys):
    """Moved into the folder of intents, it compiles."""
    monkeypatch.setattr(commands, "patient_encoder", lambda intents: Memory(words))
    data, out = traffic(tmp_path, [*FLIGHTS, *NOISE]), tmp_path / "proposed"
    assert main(["suggest", "--intents", str(folder), str(data), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("12 of 12 rows fall out of scope; 1 proposed intent\n\n# proposed from 9 rows")
    (proposed,) = out.iterdir()
    assert proposed.read_text() in shown
    shutil.move(proposed, folder)
    cohorts = compile_snapshot(load_config(folder), words).policy.cohorts
    assert cohorts["flight-leave"].tier == "large"


@pytest.mark.parametrize("label", ["no", "12", "off-topic", "Frage: Ärger?"])
def test_a_label_that_yaml_reads_as_something_else_is_quoted(folder, words, label):
    """A proposal for the label `no` is an intent with that name. Characters that names cannot have are replaced."""
    proposal = Proposal(label, 9, tuple(row["text"] for row in FLIGHTS), True, "billing")
    (folder / "proposed.yaml").write_text(as_yaml(proposal, "large"))
    name = {"Frage: Ärger?": "Frage-rger-"}.get(label, label)
    assert name in compile_snapshot(load_config(folder), words).policy.cohorts


@pytest.mark.parametrize("label", ["\u914d\u9001", ""])
def test_a_label_that_cannot_be_a_name_is_in_a_comment(label):
    """Otherwise two labels of this kind would be proposed with the same name and nothing else."""
    text = as_yaml(Proposal(label, 9, ("a", "b"), True, "billing"), "large")
    assert text.startswith(f'# proposed from 9 rows with the label "{label}"; nearest so far: billing\n')
    assert "\nintent: unnamed\n" in text


def test_existing_proposals_are_not_overwritten(folder, tmp_path, capsys):
    """Users edit them in their folder."""
    out = tmp_path / "proposed"
    out.mkdir()
    (out / "proposed-01.yaml").write_text("mine")
    data = traffic(tmp_path, FLIGHTS)
    assert main(["suggest", "--intents", str(folder), str(data), "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"extproc: {out}/proposed-01.yaml exists: move it into {folder}, delete it, or name another folder\n"
    )
    assert [path.read_text() for path in out.iterdir()] == ["mine"]


def test_borderline_utterances_are_listed_with_the_least_margin_first(folder, tmp_path, words):
    """An utterance that shares its words with the other intent comes first."""
    with (folder / "billing.yaml").open("r+") as file:
        lines = file.read().replace("utterances:\n", "utterances:\n  - invoice for the egg recipe\n")
        file.seek(0)
        file.write(lines)
    memory = Memory(words)
    run = execute(folder, memory, read_traffic(traffic(tmp_path, BILLS)), Tokens())
    listed = borderline_utterances(run, memory)
    margin, utterance = listed[0].margin, "invoice for the egg recipe"
    assert listed[0] == BorderlineUtterance("billing.yaml", "billing", "cooking", margin, utterance)
    assert [near.margin for near in listed] == sorted(near.margin for near in listed)
    assert len(listed) == 7
