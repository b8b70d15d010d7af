"""The sample intents match prompts that they have never seen."""

from collections import Counter
from collections.abc import Callable

import msgspec
import yaml

from extproc.api.request import parse_request
from extproc.config.compile import compile_snapshot
from extproc.config.load import load_config
from extproc.encoder.protocols import Encoder
from extproc.routing.index import nearest
from extproc.routing.signals import read_signals
from extproc.routing.snapshot import Snapshot
from tests.conftest import SUMMARY
from tests.e2e.traffic import CHAT, INTENTS, REPOSITORY

_BELOW = "below floor"
_LEAST_SHARE = 0.9


def _landed(snapshot: Snapshot, encoder: Encoder, prompts: list[str]) -> list[str]:
    """Return the cohort of each prompt, or that it was below the floor, as serving finds it."""
    asks = []
    for prompt in prompts:
        body = msgspec.json.encode({"model": "auto", "messages": [{"role": "user", "content": prompt}]})
        request = parse_request(CHAT, body)
        assert request is not None
        asks.append(read_signals(request, snapshot.encoder.max_chars).ask.text)
    matches = [nearest(snapshot.index, vector) for vector in encoder.encode(asks)]
    cohorts = snapshot.policy.cohorts
    return [m.cohort if m.similarity >= cohorts[m.cohort].floor else _BELOW for m in matches]


def _table(counts: dict[str, Counter[str]], columns: list[str]) -> str:
    width = max(map(len, counts)) + 2
    heads = [f"{column[:9]:>10}" for column in columns]
    rows = [
        f"{true:<{width}}" + "".join(f"{counted[column] or '.':>10}" for column in columns)
        for true, counted in counts.items()
    ]
    return "\n".join([f"{'true / landed':<{width}}" + "".join(heads), *rows])


def test_held_out_prompts_land_in_their_cohort(
    encoder: Encoder, record_property: Callable[[str, object], None]
) -> None:
    """Nine of ten held-out prompts match the cohort for which they were written, above its floor."""
    config = load_config(INTENTS)
    snapshot = compile_snapshot(config, encoder)
    prompts: dict[str, list[str]] = yaml.safe_load((REPOSITORY / "tests" / "heldout.yaml").read_text())
    names = [intent.intent for intent in config.intents]
    assert set(prompts) == {*names, "out_of_scope"}

    counts = {name: Counter(_landed(snapshot, encoder, prompts[name])) for name in prompts}
    right = sum(counts[name][name] for name in names)
    total = sum(len(prompts[name]) for name in names)
    rejected = counts["out_of_scope"][_BELOW] / len(prompts["out_of_scope"])
    record_property(
        SUMMARY,
        f"{_table(counts, [*names, _BELOW])}\n"
        f"{right} of {total} in their cohort ({right / total:.1%}); out of scope rejected: {rejected:.0%}",
    )
    assert right / total >= _LEAST_SHARE
