"""Checks of the key `cache` of an intent."""

import math
from collections.abc import Iterator

from extproc.config.schema import Intent
from extproc.settings.cache import LONGEST_TTL_S


def check_cache(intent: Intent) -> Iterator[tuple[str, str]]:
    """Yield the place and the text of each mistake."""
    cache = intent.cache
    if cache is None:
        return
    if not intent.accept:
        yield ".cache", "only accepted answers are kept, and no rule accepts any: add rules to `accept`"
    try:
        ttl_s = cache.ttl_s
    except ValueError as error:
        yield ".cache.ttl", f"`ttl` is {cache.ttl}: {error}"
    else:
        if not 1 <= ttl_s <= LONGEST_TTL_S:
            yield ".cache.ttl", f"`ttl` is {cache.ttl}: expected a time from 1s to {LONGEST_TTL_S // 86_400}d"
    if not (0 <= cache.verify <= 1 and math.isfinite(cache.verify)):
        yield ".cache.verify", f"`verify` is {cache.verify:g}: expected a share from 0 to 1, as in 0.01 for 1 %"
