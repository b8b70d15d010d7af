"""The page about dialects, from their table."""

from collections.abc import Iterable, Iterator
from typing import get_args

from docs.generate import words
from docs.generate.markdown import code, described, no_leftovers, page, table
from extproc.api.splice import REMOVED
from extproc.routing.dialects import DIALECTS, SAMPLING, Fields, Form
from extproc.settings import Dialect

_TOOLS = {
    "off": "reasoning beside tools in Chat Completions",
    "absent": "an effort beside tools in Chat Completions",
}
_LOGPROBS = {"off": "log-probabilities while it reasons", "refused": "log-probabilities"}
_SAMPLING = {"off": "sampling members while it reasons", "dropped": "sampling members"}


def dialects_page() -> str:
    """Every form of every dialect, with its source."""
    names = get_args(Dialect)
    no_leftovers(words.DIALECTS, names, "dialect")
    parts = [words.DIALECTS_START, f"Sampling members are {_codes(SAMPLING)}."]
    for name in names:
        parts += [f"## {name}", described(words.DIALECTS, name, "dialect"), _forms(DIALECTS[name])]
    return page("Dialects", *parts)


def _forms(forms: tuple[Form, ...]) -> str:
    if not forms:
        return ""
    head = ("Models", "Fields", "Efforts", "Off", "Refused")
    shared = [text for text in _refused(forms[0]) if all(text in _refused(form) for form in forms)]
    rows = [
        (
            _codes(form.models),
            _lines(_fields(form)),
            _efforts(form),
            _lines(_off(form)),
            _lines(text for text in _refused(form) if text not in shared),
        )
        for form in forms
    ]
    sources = "\n".join(f"- {source}" for source in dict.fromkeys(form.source for form in forms))
    also = f"All of them refuse {_lines(shared)}.\n\n" if shared else ""
    return f"{table(head, rows)}\n\n{also}Sources:\n\n{sources}"


def _fields(form: Form) -> Iterator[str]:
    apis: dict[str, list[str]] = {}
    for api, fields in form.apis.items():
        if fields.own:
            apis.setdefault(_field(fields), []).append(api)
    for text, names in apis.items():
        yield f"{text} ({', '.join(names)})"


def _field(fields: Fields) -> str:
    switch = f"{code(fields.switch)} = {code(_on(fields))}" if fields.switch else ""
    return " and ".join(filter(None, (switch, code(fields.effort) if fields.effort else "")))


def _on(fields: Fields) -> str:
    if isinstance(fields.on, bytes):
        return fields.on.decode()
    given = ",".join(f'"{k}":{v.decode()}' for k, v in fields.on.items() if isinstance(v, bytes) and v != REMOVED)
    return "{" + given + (',"budget_tokens":N' if fields.budget == "needed" else "") + "}"


def _efforts(form: Form) -> str:
    levels = [
        code(level) if level == word else f"{code(level)} → {code(word)}"
        for level, word in form.words.items()
        if level not in ("off", "on")
    ]
    on = f"; on: {code(form.words['on'])}" if "on" in form.words else ""
    return ", ".join(levels) + on


def _off(form: Form) -> Iterator[str]:
    switches = [code(fields.off.decode()) for fields in form.apis.values() if fields.off]
    yield from dict.fromkeys(switches)
    if "off" in form.words:
        yield code(form.words["off"])
    elif not switches and form.words:
        yield "always reasons: the lowest effort"


def _refused(form: Form) -> Iterator[str]:
    if form.beside_tools in _TOOLS:
        yield _TOOLS[form.beside_tools]
    if form.sampling in _SAMPLING:
        yield _SAMPLING[form.sampling]
    if form.logprobs in _LOGPROBS:
        yield _LOGPROBS[form.logprobs]
    if form.bars:
        yield f"thinking beside {_codes(tuple(sorted(form.bars)))}"
    for old, new in form.rename.items():
        yield f"{code(old)}, which becomes {code(new)}"
    if form.drop:
        yield _codes(form.drop)


def _codes(names: tuple[str, ...]) -> str:
    return ", ".join(map(code, names))


def _lines(lines: Iterable[str]) -> str:
    return ", ".join(lines)
