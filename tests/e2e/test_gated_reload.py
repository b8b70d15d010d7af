"""`extproc serve --gate DATA` under traffic: a reload that makes results worse is refused, another is taken."""

from collections.abc import Iterator

import msgspec
import pytest

from extproc.demo.sample_upstream import SampleUpstreams
from extproc.demo.stack import Stack
from extproc.encoder.backends import prepared_folder
from extproc.encoder.models import locate
from extproc.serving.health import serves
from tests.e2e.traffic import EXTRACT, MODELS, Flow, ask, eventually, small_intent, write_small_intents

_MODEL = "all-MiniLM-L6-v2"
_THINGS = (
    "order number", "due date", "sender", "total", "currency", "tax", "address", "phone number", "email", "name",
    "invoice number", "weight",
)  # fmt: skip


@pytest.fixture(scope="module")
def gated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A stack whose reloads are tested on rows that the small tier and the frontier tier answer well.

    The encoder is named by a path relative to the YAML, which the gate's copies must resolve.
    """
    root = tmp_path_factory.mktemp("gated")
    (root / "encoder").symlink_to(locate(_MODEL))
    # The name is a part of the prepared folder's hash. Torch would serve an encoder that is not prepared, slowly.
    prepared = root / "prepared" / prepared_folder(str(root / "encoder")).name
    prepared.parent.mkdir()
    prepared.symlink_to(prepared_folder(_MODEL))
    told = {"success": True, "tokens_in": 100, "tokens_out": 100}
    rows = [
        {
            "text": f"Extract the {thing} from this invoice as JSON",
            "intent": "extraction",
            "outcomes": dict.fromkeys(MODELS, told),
        }
        for thing in _THINGS
    ]
    data = root / "traffic.jsonl"
    data.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in rows))
    with SampleUpstreams(MODELS) as upstreams:
        source = write_small_intents(root / "source")
        policy = source / "policy.yaml"
        policy.write_text(policy.read_text().replace(f"model: {_MODEL}", "model: ../encoder"))
        stack = Stack(source, root, upstreams)
        try:
            gate = ["--gate", str(data), "--max-cost-rise", "0.5"]
            stack.start_router({"EXTPROC_PREPARED": str(prepared.parent)}, gate)
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()


def edit(stack: Stack, settings: str) -> None:
    """Replace the file at once. The router would refuse one that is half written, and log that, too."""
    written = stack.intents / "extraction.new"
    written.write_text(small_intent("extraction", settings))
    written.replace(stack.intents / "extraction.yaml")


def test_a_reload_that_regresses_is_refused_and_one_that_does_not_is_taken(gated: Stack) -> None:
    """The log names the cohort and the amount, once. The old revision serves, and the router is healthy."""
    was = ask(gated.port, EXTRACT).said
    assert was["x-router-tier"] == "small"
    before = len(gated.log("router.log"))

    def logged() -> str:
        return gated.log("router.log")[before:]

    with Flow(gated.port, EXTRACT) as flow:
        edit(gated, "tier: frontier\nmax_output_tokens: 512")  # as good, at a hundred times the cost
        eventually(lambda: "reload refused" in logged() and "regressed" in logged(), "it is refused", 120)
        flow.flows_on()
        assert ask(gated.port, EXTRACT).said == was
        assert serves(f"127.0.0.1:{gated.router_port}")
        edit(gated, "tier: small\nmax_output_tokens: 500")  # no worse
        eventually(lambda: " replaces " in logged(), "it is taken", 120)
        flow.flows_on()
    assert flow.failures() == []
    assert {answer.said["x-router-tier"] for answer in flow.answers} == {"small"}
    assert logged().count("reload refused") == 1 and "Traceback" not in logged()
    assert "FAILED" in logged() and "extraction" in logged() and "cost may rise 50 %" in logged()


def test_a_gate_that_cannot_compare_refuses_too(gated: Stack) -> None:
    """An operator who wants a gate does not want an untested reload. The reason names what is missing."""
    before = len(gated.log("router.log"))
    (data,) = gated.folder.glob("traffic.jsonl")
    data.rename(data.with_suffix(".away"))
    edit(gated, "tier: small\nmax_output_tokens: 400")
    refused = f"the gate could not compare: [Errno 2] No such file or directory: '{data}'"
    eventually(lambda: refused in gated.log("router.log")[before:], "it is refused", 60)
    assert serves(f"127.0.0.1:{gated.router_port}")
