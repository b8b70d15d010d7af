"""The review queue: cases for people, for which no model gave a good enough answer."""

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
    """Queue a case for review and return its id. Unless the policy keeps texts, the case has hashes.

    Blocks for the file or for Redis, and never raises. A case that cannot be queued is logged without its texts.
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
    except (OSError, ImportError, ValueError):  # the client still gets its answer
        # Without the URL of the queue, which may have a password.
        log.exception("review case %s could not be queued: check human.queue in policy.yaml", case)
    return case


def _to_redis(url: str, row: bytes) -> None:
    import redis  # only if the policy names a Redis URL: pip install 'envoy-semantic-router[redis]'

    try:
        with redis.Redis.from_url(url, socket_timeout=2, socket_connect_timeout=2) as client:
            client.xadd("extproc:review", {"case": row}, maxlen=100_000, approximate=True)
    except redis.RedisError as error:
        raise OSError(str(error)) from error
