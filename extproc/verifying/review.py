"""The queue of cases for people: what no model's answer was good enough for."""

import hashlib
import logging
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import msgspec

from extproc.settings import Human

log = logging.getLogger(__name__)

_writing = threading.Lock()


def enqueue(human: Human, facts: dict[str, Any], request: str, answer: str) -> str:
    """Put a case on the queue, redacted unless the policy keeps text, and return its id.

    Never raises: traffic goes first. A case that cannot be queued is logged without its text.
    """
    case = secrets.token_hex(8)
    texts = {"request": request, "answer": answer}
    kept: dict[str, Any] = {
        f"{name}_sha256": hashlib.sha256(text.encode(errors="replace")).hexdigest() for name, text in texts.items()
    } | {f"{name}_chars": len(text) for name, text in texts.items()}
    if human.keep_text:
        kept |= texts
    row = msgspec.json.encode({"case": case, "time": time.time(), **facts, **kept})
    try:
        if human.queue.startswith(("redis://", "rediss://", "unix://")):
            _to_redis(human.queue, row)
        else:
            with _writing, Path(human.queue).open("ab") as file:
                file.write(row + b"\n")
    except (OSError, ImportError, ValueError):  # a full disk or a lost Redis must not cost a client its answer
        log.exception("review case %s could not be queued", case)
    return case


def _to_redis(url: str, row: bytes) -> None:
    import redis  # only where the policy names one: pip install 'envoy-semantic-router[redis]'

    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.xadd("extproc:review", {"case": row}, maxlen=100_000, approximate=True)
    except redis.RedisError as error:
        raise OSError(str(error)) from error
