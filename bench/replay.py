"""Upstreams that replay recorded answers of real models, behind a real Envoy and router.

A request is recognised by its exact user message. Answers have the format of the OpenAI chat API, as JSON or SSE,
and take a fixed time per token.
"""

import asyncio
import contextlib
import gzip
import re
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec
from aiohttp import web

from extproc.demo.sample_upstream import TIER, SampleUpstreams
from extproc.demo.stack import Stack
from extproc.evidence.data.tokens import Tokens

# The recording cut answers at this length. The model of a cut answer had not finished.
CUT_CHARS = 4000
_LETTERS = "ABCDEFGHIJ"


class Answer(msgspec.Struct, frozen=True):
    """The answer of one model, and the letter that it chose."""

    model: str
    text: str
    choice: str | None = None
    logprobs: tuple[float, ...] = ()  # as recorded; a client gets them only if it asks for them
    usage: tuple[int, int] | None = None  # input and output tokens as recorded; None: they are counted
    seconds: float | None = None  # as recorded; None: a fixed time per token

    @property
    def finish(self) -> str:
        """The finish reason that a server would have sent."""
        return "length" if len(self.text) >= CUT_CHARS else "stop"


class Question(msgspec.Struct, frozen=True):
    """One question of MMLU-Pro, with every tier's recorded answer."""

    id: int
    category: str
    question: str
    options: tuple[str, ...]
    answer: str
    answers: dict[str, Answer]

    @property
    def prompt(self) -> str:
        """The user message: the question and its options."""
        options = (f"{letter}. {option}" for letter, option in zip(_LETTERS, self.options, strict=False))
        return "\n".join((self.question.strip(), "", *options))

    def right(self, tier: str) -> bool:
        """Whether the tier's model chose the right letter."""
        return self.answers[tier].choice == self.answer


def read_questions(path: Path) -> list[Question]:
    """The recorded questions, without those that share a user message, which a replay cannot distinguish."""
    with gzip.open(path) as lines:
        questions = [msgspec.json.decode(line, type=Question) for line in lines]
    times = Counter(question.prompt for question in questions)
    return [question for question in questions if times[question.prompt] == 1]


class ReplayUpstreams(SampleUpstreams):
    """One model server per tier. A context manager. `answers` is tier -> user message -> answer."""

    def __init__(
        self, answers: Mapping[str, Mapping[str, Answer]], token_s: Mapping[str, float], tokens: Tokens
    ) -> None:
        """Serve each tier as the model with its name. Tokens take `token_s` seconds each, by tier."""
        super().__init__({tier: tier for tier in answers})
        self._answers = answers
        self._token_s = token_s
        self._tokens = tokens
        self.asked_logprobs: Counter[str] = Counter()  # requests for log-probabilities, by tier

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = msgspec.json.decode(await request.read(), type=dict[str, Any])
        tier = request.app[TIER]
        prompt = body["messages"][-1]["content"]
        answer = self._answers[tier].get(prompt)
        if body["model"] != tier or answer is None:
            return web.json_response({"error": {"message": "not recorded", "type": "not_found"}}, status=404)
        self.asked_logprobs[tier] += bool(body.get("logprobs"))
        if body.get("stream"):
            return await self._stream_answer(request, tier, answer)
        counts = answer.usage or tuple(self._tokens.count(text) for text in (prompt, answer.text))
        await asyncio.sleep(counts[1] * self._token_s[tier] if answer.seconds is None else answer.seconds)
        message = {"role": "assistant", "content": answer.text}
        usage = {"prompt_tokens": counts[0], "completion_tokens": counts[1], "total_tokens": sum(counts)}
        choice = {"index": 0, "message": message, "finish_reason": answer.finish}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [{"token": "", "logprob": value} for value in answer.logprobs]}
        return web.json_response(_shape(tier, "chat.completion", choice) | {"usage": usage})

    async def _stream_answer(self, request: web.Request, tier: str, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        with contextlib.suppress(ConnectionError):  # Envoy closes a rejected stream early
            clock, began = asyncio.get_running_loop().time, asyncio.get_running_loop().time()
            for i, word in enumerate(frames(answer.text), start=1):
                await asyncio.sleep(began + i * self._token_s[tier] - clock())
                choice = {"index": 0, "delta": {"content": word}, "finish_reason": None}
                await response.write(_frame(_shape(tier, "chat.completion.chunk", choice)))
            last = {"index": 0, "delta": {}, "finish_reason": answer.finish}
            await response.write(_frame(_shape(tier, "chat.completion.chunk", last)) + b"data: [DONE]\n\n")
            await response.write_eof()
        return response


def frames(text: str) -> list[str]:
    """The text of each frame of a stream: a word and the white space before it. Joined, they are `text`."""
    return re.findall(r"\s*\S+|\s+$", text)


def _shape(model: str, kind: str, choice: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-replay", "object": kind, "created": 0, "model": model, "choices": [choice]}


def _frame(data: dict[str, Any]) -> bytes:
    return b"data: " + msgspec.json.encode(data) + b"\n\n"


@contextlib.contextmanager
def replaying(intents: Path, upstreams: ReplayUpstreams) -> Iterator[Stack]:
    """Replay upstreams, router and Envoy for `intents`. All are stopped at the end."""
    with tempfile.TemporaryDirectory(prefix="extproc-") as folder, upstreams:
        stack = Stack(intents, Path(folder), upstreams)
        try:
            stack.start_router()
            stack.start_envoy()
            yield stack
        finally:
            stack.stop()
