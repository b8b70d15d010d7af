"""Checks of the background, and of file names that begin with an underscore."""

from collections.abc import Iterator, Mapping, Sequence

from extproc.config.schema import BACKGROUND_FILE
from extproc.mismatch import counted

# Fewer texts say little about what belongs to no intent. `LEAST_UTTERANCES` is the same for an intent.
_LEAST_TEXTS = 3


def check_name(name: str) -> str | None:
    """The mistake in the name of a file that should be an intent, or None."""
    if name.startswith("_"):
        return f"a name that begins with `_` is reserved, and only {BACKGROUND_FILE} is known: rename the file"
    return None


def check_background(texts: Sequence[str], utterances: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the path and the text of each mistake. `utterances` are those of all intents, with their files."""
    if len(texts) < _LEAST_TEXTS:
        what = f"only {counted(len(texts), 'text')}: write at least {_LEAST_TEXTS}, better 200, or remove the file"
        yield ".background", what
    files = {_same(text): file for text, file in utterances.items()}
    seen: set[str] = set()
    for i, text in enumerate(map(_same, texts)):
        at = f".background[{i}]"
        if not text:
            yield at, "this text is empty: write it, or remove it"
        elif text in seen:
            yield at, f"text `{text}` occurs twice: remove one of them"
        elif text in files:
            yield at, f"text `{text}` is also an utterance in {files[text]}: remove one of them"
        seen.add(text)


def _same(text: str) -> str:
    """The text as texts are compared: without case, and without spaces at the ends."""
    return text.strip().lower()
