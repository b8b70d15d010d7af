"""Acceptance rules that ask another model: `judge` (is this answer good?) and `agree` (would you say the same?).

An OpenAI-compatible chat endpoint, a hard time limit, one call a rule. Whatever goes wrong (slow, down, no clear
word) the rule has not run, and its declared outcome counts.
"""

import http.client
import time
import urllib.request
from typing import Any

import msgspec

from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import External
from extproc.settings import Judge

# A judge says one word; a second opinion is an answer of ordinary length.
_JUDGE_TOKENS, _AGREE_TOKENS = 4, 512
_QUESTION = (
    "You check answers. Below are a request and an answer to it. Reply with one word: yes if the answer does what "
    "the request asks and is right as far as you can tell, no otherwise.\n\n<request>\n{request}\n</request>\n\n"
    "<answer>\n{answer}\n</answer>"
)


_MOST_BYTES = 1 << 20


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """A judge that sends us elsewhere would send our key there, too."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def call_out(rule: External, judge: Judge, facts: Requirements, answer: str, embed: Embed | None) -> bool | None:
    """Run one rule; blocks for at most the judge's time limit. None: it could not run."""
    if not facts.context or not answer:
        return None
    if rule.name == "judge":
        said = _ask(judge, _QUESTION.format(request=facts.context, answer=answer), _JUDGE_TOKENS)
        word = said.strip().lower() if said is not None else ""
        return True if word.startswith("yes") else False if word.startswith("no") else None
    said = _ask(judge, facts.context, _AGREE_TOKENS)
    vectors = embed([answer, said]) if said and embed is not None else None
    return None if vectors is None else bool(float(vectors[0] @ vectors[1]) >= rule.level)


def _ask(judge: Judge, content: str, max_tokens: int) -> str | None:
    body = {
        "model": judge.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    scheme = "https" if judge.tls else "http"
    request = urllib.request.Request(
        f"{scheme}://{judge.endpoint}/v1/chat/completions",
        msgspec.json.encode(body),
        {"content-type": "application/json", **judge.authorization()},
    )
    deadline = time.monotonic() + judge.timeout_ms / 1000
    said = bytearray()
    try:
        with _opener.open(request, timeout=judge.timeout_ms / 1000) as reply:
            while piece := reply.read1(1 << 16):
                said += piece
                if time.monotonic() > deadline or len(said) > _MOST_BYTES:
                    return None
        answer: Any = msgspec.json.decode(said)
        return str(answer["choices"][0]["message"]["content"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
