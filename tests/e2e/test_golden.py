"""A router that replays golden rows: a reload that changes a decision is reported."""

from pathlib import Path

import msgspec

from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from tests.e2e.traffic import EXTRACT, MODELS, PROVE, eventually


def test_a_reload_that_flips_a_golden_decision_is_reported(small_intents: Path, tmp_path: Path) -> None:
    """The log names the line once, and says when all decisions are right again."""
    golden = tmp_path / "golden.jsonl"
    rows = ({"text": PROVE, "intent": "math_reasoning"}, {"text": EXTRACT, "intent": "extraction"})
    golden.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    with SampleUpstreams(MODELS) as upstreams:
        stack = Stack(small_intents, tmp_path, upstreams)
        try:
            stack.start_router(options=["--golden", str(golden)])
            intent = stack.intents / "extraction.yaml"
            before = intent.read_text()
            intent.write_text(before.replace("intent: extraction", "intent: fields"))
            flipped = (
                "golden: 1 of 2 decisions are not the recorded ones: line 2: expected extraction, found fields"
            )
            eventually(lambda: flipped in stack.log("router.log"), "the flip is reported", 90)
            intent.write_text(before)
            again = "golden: all 2 decisions are the recorded ones again"
            eventually(lambda: again in stack.log("router.log"), "the decision is right again", 90)
            assert stack.log("router.log").count("golden: ") == 2
        finally:
            stack.stop()
