"""The demo's client: the OpenAI library, which also measures the time to the first byte of an answer."""

import time
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import openai

from extproc.demo.processes import StackError


class Answer(msgspec.Struct, frozen=True):
    """One answer as the client received it. The text of a stream is its events, undecoded."""

    first_byte_s: float
    headers: Mapping[str, str]
    text: str


class Client:
    """A chat client of one base URL. A context manager."""

    def __init__(self, url: str, headers: dict[str, str] | None = None) -> None:
        """Send requests to `url` (without /v1), with `headers` added to each."""
        self._openai = openai.OpenAI(
            base_url=f"{url}/v1", api_key="demo", max_retries=0, timeout=30, default_headers=headers
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self._openai.close()

    def ask(self, model: str, prompt: str, stream: bool, extra: dict[str, Any] | None = None) -> Answer:
        """Send a prompt, with the fields of `extra` added to the body. Raises StackError."""
        began = time.perf_counter()
        try:
            with self._openai.chat.completions.with_streaming_response.create(
                model=model, messages=[{"role": "user", "content": prompt}], stream=stream, extra_body=extra
            ) as answer:
                pieces = answer.iter_bytes()
                first = next(pieces)
                seconds = time.perf_counter() - began
                return Answer(seconds, answer.headers, _text(first, pieces))
        except openai.OpenAIError as error:
            raise StackError(f"a request failed: {str(error).rstrip('.')}") from error


def _text(first: bytes, rest: Iterator[bytes]) -> str:
    return b"".join([first, *rest]).decode()
