"""From logged requests to calibrated intents, a report and a gate, with the four commands of the guides."""

import json
import re
import shutil
from pathlib import Path

import msgspec
import pytest
import yaml

from extproc.cli.main import main
from extproc.encoder.features import FeatureEncoder
from extproc.evidence.execution import Memory

ROOT = Path(__file__).parent.parent
# Every fifth utterance of an intent stays. This many of the others become requests, which is enough to fit floors.
_ROWS = 40
_PLACES = "Peru Chad Oman Fiji Laos Cuba Mali Togo Iran Iraq Nepal Qatar Kenya Ghana".split()  # noqa: SIM905
_NO_INTENT = [
    words.format(place) for place in _PLACES for words in ("what is the capital of {}", "weather in {} tomorrow")
]


class Once:
    """The encoder, which encodes each text once for all commands."""

    def __init__(self, encoder: FeatureEncoder) -> None:
        self.sentences = encoder.sentences
        self.encode = Memory(encoder).encode


def in_the_guides() -> list[list[str]]:
    """The commands under "From a log to a gate", word for word."""
    text = (ROOT / "docs" / "guides" / "index.md").read_text()
    block = re.search(r"## From a log to a gate.*?```bash\n(.*?)```", text, re.DOTALL)
    assert block is not None
    return [line.partition("#")[0].split()[1:] for line in block[1].splitlines()]


def test_four_commands_lead_from_logged_requests_to_a_gate(
    encoder: FeatureEncoder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> None:
    """A person labels the rows in between. Each command exits with 0, and the gate with 1 after a bad change."""
    once = Once(encoder)
    monkeypatch.setattr("extproc.cli.evidence.load_encoder", lambda _: once)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "intents", "intents")
    asked: list[tuple[str, str | None]] = [(text, None) for text in _NO_INTENT]
    for path in Path("intents").glob("*.yaml"):
        intent = yaml.safe_load(path.read_text())
        if "utterances" not in intent:
            continue
        utterances = intent["utterances"]
        path.write_text(yaml.safe_dump(intent | {"utterances": utterances[::5]}))
        asked += [(text, intent["intent"]) for i, text in enumerate(utterances) if i % 5][:_ROWS]
    bodies = [{"model": "auto", "messages": [{"role": "user", "content": text}]} for text, _ in asked]
    Path("requests.jsonl").write_bytes(b"".join(msgspec.json.encode(body) + b"\n" for body in bodies))

    convert, calibrate, evaluate, gate = in_the_guides()
    assert convert[-2:] == [">", "traffic.jsonl"] and main(convert[:-2]) == 0
    rows = [json.loads(line) for line in capsysbinary.readouterr().out.splitlines()]
    labelled = [row | {"intent": intent} for row, (_, intent) in zip(rows, asked, strict=True)]
    Path("traffic.jsonl").write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in labelled))

    assert main(calibrate) == 0 and b"changed and written" in capsysbinary.readouterr().out
    stamped = [path.stem for path in Path("intents").glob("*.yaml") if "\nevidence:" in path.read_text()]
    assert stamped
    assert main(evaluate) == 0 and Path("report.html").read_text().count("<svg") > 3

    shutil.copytree("intents", "main/intents")
    path = Path("intents/summary.yaml")
    path.write_text(path.read_text().replace("tier: small", "tier: small # as before"))
    assert main(gate) == 0 and b"passed: " in capsysbinary.readouterr().out
    path.write_text(path.read_text().replace("tier: small", "tier: frontier"))
    assert main(gate) == 1 and b"FAILED: " in capsysbinary.readouterr().out
