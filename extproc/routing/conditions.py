"""Whether a rule of the policy applies to a request."""

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase

import msgspec

from extproc.routing.policy import Cohort
from extproc.routing.signals import Signals
from extproc.settings import Conditions


def applies(when: Conditions, cohorts: Sequence[Cohort], signals: Signals, headers: Mapping[str, str]) -> bool:
    """Return whether all conditions hold. `cohorts` are those that the request may belong to."""
    checks = (
        when.intents is None or any(cohort.name in when.intents for cohort in cohorts),
        when.risk is None or any(cohort.risk == when.risk for cohort in cohorts),
    )
    return all(checks) and may_apply(when, signals, headers)


def may_apply(when: Conditions, signals: Signals | None, headers: Mapping[str, str]) -> bool:
    """Return whether the conditions hold that need no match. Without signals, only headers are checked."""
    if when.headers is not None and not _headers_match(when.headers, headers):
        return False
    return signals is None or _fits_request(when, signals)


def reads_only_headers(when: Conditions) -> bool:
    """Return whether no condition reads the body."""
    return msgspec.structs.replace(when, headers=None) == Conditions()


def _fits_request(when: Conditions, signals: Signals) -> bool:
    checks = (
        when.tokens_over is None or signals.tokens > when.tokens_over,
        when.tokens_under is None or signals.tokens < when.tokens_under,
        when.turns_over is None or signals.turns > when.turns_over,
        when.tools is None or ("tools" in signals.needs) == when.tools,
        when.images is None or ("vision" in signals.needs) == when.images,
        when.strict_output is None or signals.strict_output == when.strict_output,
        when.model is None or fnmatchcase(signals.model or "", when.model),
    )
    return all(checks)


def _headers_match(patterns: Mapping[str, str], headers: Mapping[str, str]) -> bool:
    """Whether every header matches its pattern. An absent header counts as empty."""
    return all(fnmatchcase(headers.get(name, ""), pattern) for name, pattern in patterns.items())
