"""Several tasks in one request, which all get an answer. The costliest one decides."""

from collections.abc import Sequence

from extproc.api.request import Request, Turn
from extproc.routing.ask import Ask, find_ask

_MOST = 4  # each task is encoded


def find_tasks(request: Request, max_chars: int) -> tuple[Ask, ...]:
    """Return the asks of the prompts of a request to Completions, at most four of them."""
    prompts = request.turns[-1].texts if request.api == "completions" and request.turns else ()
    if len(prompts) < 2:
        return ()
    asks = [find_ask((Turn("user", (text,)),), max_chars) for text in _spaced(list(dict.fromkeys(prompts)))]
    return tuple([ask for ask in asks if ask.text])


def _spaced(texts: Sequence[str]) -> list[str]:
    """A few of the texts, evenly spaced, with the first and the last one."""
    count = min(len(texts), _MOST)
    return [texts[at * (len(texts) - 1) // max(1, count - 1)] for at in range(count)]
