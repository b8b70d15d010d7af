"""Simulated users of the demo: they ask in their own words, keep what they sent, and rate and label some answers.

Each ask is an utterance of an intent or a text of the background, rewritten without a model. So the right cohort is
known. No real traffic is as near to the utterances as this.
"""

import http.client
import itertools
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import msgspec

from extproc.config.load import load_config
from extproc.contract.names import REQUEST_ID, HeaderName
from extproc.contract.words import Reason
from extproc.evidence.perturb.rewrites import REWRITES

# Shares of the asks whose answers get a label and a rating.
_LABELLED, _RATED = 0.6, 0.3
# A shared machine serves this rate beside the router and Envoy.
_PAUSE_S = 0.05
_TIMEOUT_S = 30.0


class Ask(msgspec.Struct, frozen=True):
    """The words of a user, and the right cohort."""

    text: str
    cohort: str  # or `out_of_scope`


def asks(intents: Path, seed: int = 0) -> Iterator[Ask]:
    """Yield asks without end, in a random order."""
    config, rng = load_config(intents), random.Random(seed)
    texts = [Ask(text, intent.intent) for intent in config.intents for text in intent.utterances]
    texts += [Ask(text, Reason.OUT_OF_SCOPE) for text in config.background]
    while True:
        for ask in rng.sample(texts, len(texts)):
            rewrite = rng.choice(list(REWRITES.values()))
            yield msgspec.structs.replace(ask, text=rewrite(ask.text, rng))


class Users:
    """A thread that asks until it is stopped. A context manager."""

    def __init__(self, port: int, intents: Path, requests: Path) -> None:
        """`port` is that of Envoy. Each request is appended to the file `requests`, with its id."""
        self._port, self._requests = port, requests
        self._asks = asks(intents)
        self._rng = random.Random(1)
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="users", daemon=True)

    def __enter__(self) -> "Users":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join(_TIMEOUT_S)

    def _run(self) -> None:
        for number in itertools.count():
            if self._stopped.wait(_PAUSE_S):
                return
            try:
                self._ask(number, next(self._asks))
            except (OSError, http.client.HTTPException):
                continue  # the demo is stopping, or the machine is busy

    def _ask(self, number: int, ask: Ask) -> None:
        body = {"model": "auto", "messages": [{"role": "user", "content": ask.text}]}
        headers = self._post("/v1/chat/completions", body, {"session-id": f"user-{number}"})
        name = headers.get(REQUEST_ID)
        if name is None:
            return
        with self._requests.open("ab") as file:
            file.write(msgspec.json.encode({"id": name, "request": body}) + b"\n")
        feedback: dict[str, str] = {}
        if self._rng.random() < _LABELLED:
            feedback["label"] = ask.cohort
        if self._rng.random() < _RATED:
            feedback["thumbs"] = "up" if headers.get(HeaderName.COHORT) == ask.cohort else "down"
        if feedback:
            self._post("/feedback", {"request_id": name} | feedback, {})

    def _post(self, path: str, body: object, headers: dict[str, str]) -> dict[str, str]:
        """Send JSON, and return the headers of the answer."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT_S)
        try:
            content = {"content-type": "application/json", "authorization": "Bearer demo"}
            connection.request("POST", path, msgspec.json.encode(body), content | headers)
            response = connection.getresponse()
            response.read()
            return {name.lower(): value for name, value in response.getheaders()}
        finally:
            connection.close()
