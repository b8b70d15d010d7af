"""Time to first token of escalated streams, judged early or after the whole small answer: `make bench-ttft`.

Two cohorts have the same small tier and the same rules, and differ only in `stream`. Their requests alternate in
one run with requests to each tier by its name, the control. Models send one word every TOKEN_S seconds. Nothing
else is simulated.
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import yaml

from bench.replay import Answer, ReplayUpstreams, replaying
from extproc.config.schema import POLICY_FILE
from extproc.contract.names import HeaderName
from extproc.evidence.data.tokens import Tokens

SMALL, LARGE = "small", "large"
TOKEN_S = 0.020
_WORDS = {SMALL: 100, LARGE: 20}
_ROUNDS = 15

_GOOD = (
    "The plan in short: begin with what is known, write down what is not, and settle the rest in order of cost. "
)
_REFUSAL = "I'm sorry, but I can't help with that request. "
# The answer of the small tier to each kind of request. The large tier always answers well.
_SMALL_ANSWERS = {"refusal": _REFUSAL + _GOOD * 10, "wrong shape": _GOOD * 10, "good answer": _GOOD * 10}
_SCHEMA = {"type": "object", "properties": {"dish": {"type": "string"}}, "required": ["dish"]}
_FORMAT = {"type": "json_schema", "json_schema": {"name": "dish", "schema": _SCHEMA}}

_COHORTS = {
    "early": [
        "Plan a week of dinners for two",
        "What can I cook with leeks and potatoes",
        "Suggest a dessert for a summer lunch",
        "How long do I roast a chicken",
    ],
    "buffer": [
        "Plan a train journey from Vienna to Lisbon",
        "Which museums in Madrid are open on Monday",
        "Suggest a quiet island for a holiday in May",
        "How do I get from the airport to the old town",
    ],
}


def write_intents(folder: Path) -> None:
    """Write two intents that differ only in `stream`."""
    tiers = [
        {
            "name": name,
            "model": name,
            "url": "http://127.0.0.1:9",
            "context": 100_000,
            "price": {"input": 0, "output": 0},
        }
        for name in (SMALL, LARGE)
    ]
    policy = {
        "version": 1,
        "default_tier": SMALL,
        "tiers": tiers,
        "encoder": {"deadline_ms": 2000},
        "escalations": {"per_minute": 1_000_000, "burst": 1_000_000},
    }
    (folder / POLICY_FILE).write_text(yaml.safe_dump(policy))
    for name, utterances in _COHORTS.items():
        intent = {
            "intent": name,
            "tier": SMALL,
            "utterances": utterances,
            "floor": -1.0,
            "stream": name,
            "accept": ["complete", "non_empty", "no_refusal", "json_schema"],
            "escalate": {"to": LARGE, "max": 1, "share": 1.0},
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(intent))


def replayed() -> dict[str, dict[str, Answer]]:
    """The answer of each tier to each prompt: tier -> prompt -> answer."""
    answers: dict[str, dict[str, Answer]] = {SMALL: {}, LARGE: {}}
    for cohort in _COHORTS:
        for kind, small_answer in _SMALL_ANSWERS.items():
            good = '{"dish": "' + _GOOD * 10 if kind == "wrong shape" else _GOOD * 10
            end = '"}' if kind == "wrong shape" else ""
            answers[SMALL][prompt(cohort, kind)] = Answer(SMALL, _cut(small_answer, SMALL))
            answers[LARGE][prompt(cohort, kind)] = Answer(LARGE, _cut(good, LARGE) + end)
    return answers


def _cut(text: str, tier: str) -> str:
    return " ".join(text.split()[: _WORDS[tier]])


def prompt(cohort: str, kind: str) -> str:
    """A request that matches the cohort. The small tier answers it with the answer for `kind`."""
    return f"{_COHORTS[cohort][0]}, version with a {kind}"


async def first_token(session: aiohttp.ClientSession, url: str, model: str, text: str, shaped: bool) -> Any:
    """(seconds to the first content at the client, tier, cohort, whole text). Raises RuntimeError if cut."""
    body: dict[str, Any] = {"model": model, "stream": True, "messages": [{"role": "user", "content": text}]}
    if shaped:
        body["response_format"] = _FORMAT
    seconds, received, ended = None, "", False
    began = time.perf_counter()
    async with session.post(f"{url}/v1/chat/completions", json=body) as answer:
        async for line in answer.content:
            if not line.startswith(b"data: {"):
                ended = ended or line.startswith(b"data: [DONE]")
                continue
            content = msgspec.json.decode(line[6:])["choices"][0]["delta"].get("content")
            if content and seconds is None:
                seconds = time.perf_counter() - began
            received += content or ""
        if answer.status != 200 or seconds is None or not ended:
            raise RuntimeError(f"{answer.status}, incomplete stream for {model}: {text}")
        return seconds, answer.headers.get(HeaderName.TIER), answer.headers.get(HeaderName.COHORT), received


async def measure(url: str, answers: Mapping[str, Mapping[str, Answer]]) -> dict[tuple[str, str], list[float]]:
    """(kind, way) -> seconds to first token. Ways are the two cohorts and the two tiers by name."""
    times: dict[tuple[str, str], list[float]] = {}
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        for i in range(_ROUNDS + 1):  # the first round warms up
            for kind in _SMALL_ANSWERS:
                ways = [*_COHORTS, SMALL, LARGE]
                measured = await asyncio.gather(
                    *(_one(session, url, way, kind, answers) for way in ways[i % 4 :] + ways[: i % 4])
                )
                for way, seconds in measured:
                    if i:
                        times.setdefault((kind, way), []).append(seconds)
    return times


async def _one(
    session: aiohttp.ClientSession, url: str, way: str, kind: str, answers: Mapping[str, Mapping[str, Answer]]
) -> tuple[str, float]:
    """Send one request. Raises RuntimeError unless the answer is whole and from the expected tier and cohort."""
    named = way in (SMALL, LARGE)
    text = prompt("early" if named else way, kind)
    expected = way if named else SMALL if kind == "good answer" else LARGE
    shaped = kind == "wrong shape"
    seconds, tier, cohort, received = await first_token(session, url, way if named else "auto", text, shaped)
    if (tier, received) != (expected, answers[expected][text].text) or not (named or cohort == way):
        raise RuntimeError(f"{kind}, {way}: {tier} and {cohort} sent {received[:80]!r}, expected {expected}")
    return way, float(seconds)


def row(kind: str, times: Mapping[tuple[str, str], list[float]]) -> str:
    """One line of the table: medians in ms, and the ratio of buffered to early."""
    early, buffered, small, large = (
        1000 * statistics.median(times[kind, way]) for way in ("early", "buffer", SMALL, LARGE)
    )
    return f"{kind:<20}{early:>9.0f}{buffered:>10.0f}{buffered / early:>9.1f}{small:>15.0f}{large:>15.0f}"


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    answers = replayed()
    token_s = dict.fromkeys((SMALL, LARGE), TOKEN_S)
    with tempfile.TemporaryDirectory(prefix="intents-") as folder:
        write_intents(Path(folder))
        with replaying(Path(folder), ReplayUpstreams(answers, token_s, Tokens())) as stack:
            times = asyncio.run(measure(stack.url, answers))
    print("time to first token, p50 ms\n")
    print("the small tier gives    early    buffer    ratio   small direct   large direct")
    for kind in _SMALL_ANSWERS:
        print(row(kind, times))
    print(
        f"\n{_ROUNDS} rounds. The four requests of a row run at the same time. The small tier sends "
        f"{_WORDS[SMALL]} words,\nthe large one {_WORDS[LARGE]}, one every {1000 * TOKEN_S:.0f} ms. "
        '"direct" asks a tier by the name of its model.\n'
        "Both cohorts also buffer a good answer. early buffers only its first 200 characters.\n"
        "python -m bench.ttft"
    )


if __name__ == "__main__":
    main()
