"""Mistakes in the syntax of a YAML file, in words that say what to do."""

import re

_NOT_SUPPORTED = "could not determine a constructor for the tag "
_MERGE = "tag:yaml.org,2002:merge"
# Words of the parser, and what to do.
_REMEDIES = {
    "mapping values are not allowed in this context": "put a text with `: ` in quotes, and begin the keys of one "
    "mapping in the same column",
    "but found another document": "write one document, without a line of `---` inside",
    "found undefined alias": "a word that begins with `*` refers to an anchor: put a text in quotes",
    "did not find expected alphabetic or numeric character": "put a text that begins with `*` or `&` in quotes",
    "found character that cannot start any token": "put a text that begins with a special character in quotes",
    "control characters are not allowed": "remove the character, which an editor may not show",
}
_TAB = "indent with spaces, as YAML allows no tabs there"


def syntax_problem(raw: bytes, error: Exception) -> tuple[int, str]:
    """The line of the mistake, and the sentence about it."""
    if isinstance(error, RecursionError):
        return 1, "lists and mappings are nested too deeply: write fewer levels"
    if (line := _not_utf8(raw)) is not None:
        return line, "is not UTF-8 text: save the file with the encoding UTF-8"
    mark = getattr(error, "problem_mark", None)
    line = mark.line + 1 if mark is not None else 1
    what = getattr(error, "problem", None) or str(error).splitlines()[0]
    if what.startswith(_NOT_SUPPORTED):
        tag = what.removeprefix(_NOT_SUPPORTED).strip("'")
        if tag == _MERGE:
            return line, "a merge key (`<<`) is not supported: write the keys themselves"
        return line, f"the tag `{tag.replace('tag:yaml.org,2002:', '!!')}` is not supported: remove it"
    remedy = next((remedy for words, remedy in _REMEDIES.items() if words in str(error)), "")
    lines = raw.decode("utf-8", "replace").splitlines()
    if 0 < line <= len(lines) and re.match(r" *\t", lines[line - 1]):
        remedy = _TAB
    return line, f"is not valid YAML: {what}" + (f": {remedy}" if remedy else "")


def _not_utf8(raw: bytes) -> int | None:
    """The line of the first byte that is not UTF-8. YAML in UTF-16 begins with a mark, and is read."""
    if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
        return None
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        return raw.count(b"\n", 0, error.start) + 1
    return None
