"""Acceptance rules that ask another model: `judge` asks for an opinion, `agree` compares a second answer.

Each rule makes one call to an OpenAI-compatible chat endpoint, with a hard time limit. If the endpoint is slow or
down, or its reply is neither yes nor no, the rule counts as not run.
"""

import http.client
import time
import urllib.request
from typing import Any

import msgspec

from extproc.acceptance.agreement import same_answer
from extproc.acceptance.grounding import Embed
from extproc.acceptance.requirements import Requirements
from extproc.acceptance.rules import External
from extproc.settings import Judge

# Most tokens of a reply. A judge replies with one word, a second answer has the usual length.
_JUDGE_TOKENS, _AGREE_TOKENS = 4, 512
_QUESTION = (
    "You check answers. Below are a request and an answer to it. Reply with one word: yes if the answer does what "
    "the request asks and is right as far as you can tell, no otherwise.\n\n<request>\n{request}\n</request>\n\n"
    "<answer>\n{answer}\n</answer>"
)
_MAX_REPLY_BYTES = 1 << 20


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Follow no redirect: the request carries our API key."""

    def redirect_request(self, *_: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirects, urllib.request.ProxyHandler({}))


def call_out(rule: External, judge: Judge, facts: Requirements, answer: str, embed: Embed | None) -> bool | None:
    """Run one rule. Blocks for at most the judge's time limit. Returns None if the rule could not run."""
    if not facts.context or not answer:
        return None
    if rule.name == "judge":
        opinion = _ask(judge, _QUESTION.format(request=facts.context, answer=answer), _JUDGE_TOKENS)
        word = opinion.strip().lower() if opinion is not None else ""
        return True if word.startswith("yes") else False if word.startswith("no") else None
    second = _ask(judge, facts.context, _AGREE_TOKENS)
    return same_answer(answer, second, rule.level, embed) if second else None


def _ask(judge: Judge, content: str, max_tokens: int) -> str | None:
    body = {
        "model": judge.model,
        "messages": [{"role": "user", "content": content}],
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    deadline = time.monotonic() + judge.timeout_ms / 1000
    raw = bytearray()
    try:
        headers = {"content-type": "application/json", **judge.authorization()}
        request = urllib.request.Request(judge.chat_url, msgspec.json.encode(body), headers)
        with _opener.open(request, timeout=judge.timeout_ms / 1000) as reply:
            while piece := reply.read1(1 << 16):
                raw += piece
                if time.monotonic() > deadline or len(raw) > _MAX_REPLY_BYTES:
                    return None
        answer: Any = msgspec.json.decode(raw)
        return str(answer["choices"][0]["message"]["content"])
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return None
