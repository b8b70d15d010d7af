"""The form of a request for the cache: its ask, and a key of everything else that its answer depends on.

Members that change no answer are left out (`_HARMLESS`). Every other member counts, known or not: system prompt,
earlier turns, tools, sampling parameters, limits. A request that cannot be read without doubt has no form.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from extproc.api.needs import HOSTED
from extproc.api.request import Request
from extproc.contract.words import CacheWord
from extproc.routing.personal import has_identifier, is_about_a_moment, speaks_of_itself, wants_a_new_one

# Members that say who asks, what is stored, or how the answer is sent.
_HARMLESS = frozenset((
    "user", "metadata", "stream", "stream_options", "store", "safety_identifier", "prompt_cache_key",
    "prompt_cache_retention", "service_tier",
))  # fmt: skip
# Members that ask for more than one text, or for facts about its tokens.
_SEVERAL = ("n", "best_of", "num_return_sequences", "candidate_count")
# Anthropic says which stop sequence ended an answer, and it is not kept.
_PLURAL = (
    "logprobs", "top_logprobs", "prompt_logprobs", "return_token_ids", "return_tokens_as_token_ids", "echo",
    "include", "audio", "stop_sequences",
)  # fmt: skip
# Members by which the servers of some providers look into the web or into files of the client.
_SEARCHES = (
    "plugins", "enable_search", "search_parameters", "search_domain_filter", "search_recency_filter",
    "data_sources", "return_citations", "return_images", "return_related_questions",
)  # fmt: skip
# Members of which the client draws at random. At 0 the most likely answer is wanted, as without them.
_RANDOM = ("temperature",)
# A longer body is an agent's or a document's, and is rarely sent twice.
_MOST_BYTES = 128 * 1024
# Headers that change the answer of an upstream, and those by which a client refuses a cached answer.
ANSWER_HEADERS = ("anthropic-version", "anthropic-beta", "openai-beta", "openai-organization", "openai-project")
CONTROL_HEADER = "cache-control"


class CacheForm(msgspec.Struct, frozen=True):
    """The ask of a request, and everything else that its answer depends on, as bytes."""

    ask: str  # as the client sent it
    rest: bytes
    stream_usage: bool = False  # a stream is to end with its token counts


class _Doubt(ValueError):
    """A member occurs twice, so that two readers may read two requests."""


def read_form(request: Request) -> CacheForm | CacheWord:
    """Return the form of a request, or the word for why it is not cached."""
    state = request.state
    if state.bound or state.background or state.kept or state.compacted or len(request.body) > _MOST_BYTES:
        return CacheWord.FORM
    if request.media_bytes or any(need.startswith(HOSTED) for need in request.needs):
        return CacheWord.FORM
    try:
        body = json.loads(request.readable, object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return CacheWord.FORM
    if any(body.get(name) not in (None, 1) for name in _SEVERAL) or any(
        body.get(name) for name in (*_PLURAL, *_SEARCHES)
    ):
        return CacheWord.FORM
    if request.api == "responses" and body.get("prompt"):  # a text that the provider keeps, and that may change
        return CacheWord.FORM
    if any(body.get(name) not in (None, 0) for name in _RANDOM):
        return CacheWord.SAMPLING
    ask = _take_ask(request.api, body)
    if ask is None or not ask.strip():
        return CacheWord.FORM
    people = [ask, *(text for turn in request.turns if turn.role == "user" for text in turn.texts)]
    if any(map(speaks_of_itself, people)):
        return CacheWord.PERSONAL
    if has_identifier(ask) or any(has_identifier(text) for turn in request.turns for text in turn.texts):
        return CacheWord.PERSONAL
    if is_about_a_moment(ask):
        return CacheWord.MOMENT
    if wants_a_new_one(ask):
        return CacheWord.SAMPLING
    rest = {name: value for name, value in body.items() if name not in _HARMLESS}
    options = body.get("stream_options")
    stream_usage = isinstance(options, dict) and options.get("include_usage") is True
    return CacheForm(ask, json.dumps([request.api, rest], sort_keys=True).encode(), stream_usage)


def _once(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """The members of an object, each of them once."""
    members = dict(pairs)
    if len(members) < len(pairs):
        raise _Doubt
    return members


def _take_ask(api: str, body: dict[str, Any]) -> str | None:
    """Take the text of the last turn out of `body`. None: the last turn is not one text of the user."""
    name = {"responses": "input", "completions": "prompt"}.get(api, "messages")
    value = body.get(name)
    if isinstance(value, str) and name != "messages":
        body[name] = None
        return value
    if api == "completions" or not isinstance(value, list) or not value:
        return None
    turn = value[-1]
    if not isinstance(turn, dict) or turn.get("role") != "user" or turn.get("type", "message") != "message":
        return None
    content = turn.get("content")
    if isinstance(content, str):
        turn["content"] = None
        return content
    if not isinstance(content, list) or len(content) != 1 or not isinstance(content[0], dict):
        return None
    part = content[0]
    text = part.get("text")
    if part.get("type") not in ("text", "input_text") or not isinstance(text, str):
        return None
    part["text"] = None
    return text


def header_values(headers: Mapping[str, str]) -> list[str]:
    """The values of the headers that change an answer."""
    return [f"{name}:{headers[name]}" for name in ANSWER_HEADERS if name in headers]


def directives(headers: Mapping[str, str]) -> frozenset[str]:
    """The directives of the client about caches, in lower case."""
    words = headers.get(CONTROL_HEADER, "").lower().split(",")
    return frozenset(word.strip().replace(" ", "") for word in words)
