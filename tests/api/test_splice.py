"""Editing JSON in place: all bytes that are not edited stay the same, in any valid spelling."""

import json
import random
from typing import Any

import pytest

from extproc.api.splice import (
    MAX_MEMBERS,
    REMOVED,
    DuplicateMember,
    Edits,
    SpliceError,
    apply,
    layout,
    patches,
    rebase,
    splice,
)

SPACES = ("", "", " ", "\n", "\t", " \r\n  ")
STRINGS = (
    "",
    "a",
    "model",
    'q"q',
    "back\\slash",
    "tab\there",
    "Grüße",
    "你好😀",
    "{[,:]}",
    "\u2028",
    "null",
    "\x00",
)


class Writer:
    """Writes random JSON with odd white space, escapes and number forms. Keys are distinct."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)

    def space(self) -> str:
        return self.dice.choice(SPACES)

    def string(self, text: str) -> str:
        """Return the same string in one of its spellings."""
        spelled = json.dumps(text, ensure_ascii=self.dice.random() < 0.5)
        if text.isalnum() and text.isascii() and self.dice.random() < 0.2:
            spelled = '"' + "".join(f"\\u{ord(c):04X}" for c in text) + '"'
        return spelled

    def value(self, depth: int = 3) -> str:
        kind = self.dice.randrange(7 if depth else 5)
        if kind == 0:
            return self.dice.choice(("0", "-1", "1.50", "1E+2", "12345678901234567890", "-0.0"))
        if kind == 1:
            return self.dice.choice(("true", "false", "null"))
        if kind < 5:
            return self.string(self.dice.choice(STRINGS))
        if kind == 5:
            items = [self.space() + self.value(depth - 1) + self.space() for _ in range(self.dice.randrange(4))]
            return "[" + (",".join(items) or self.space()) + "]"
        return "".join(text for _, text in self.members(depth - 1)).lstrip()

    def members(self, depth: int, always: tuple[str, ...] = ()) -> list[tuple[str | None, str]]:
        """Return an object in pieces: (name, value) for each member, (None, text) for the text between them."""
        names = list(dict.fromkeys([*always, *self.dice.sample(STRINGS, self.dice.randrange(5))]))
        self.dice.shuffle(names)
        pieces: list[tuple[str | None, str]] = [(None, self.space() + "{")]
        for i, name in enumerate(names):
            key = self.space() + self.string(name) + self.space() + ":" + self.space()
            pieces += [(None, "," * (i > 0) + key), (name, self.value(depth)), (None, self.space())]
        return [*pieces, (None, self.space() + "}")]


def parsed(text: bytes | str) -> Any:
    return json.loads(text)


@pytest.mark.parametrize("seed", range(300))
def test_replacing_members_leaves_every_other_byte(seed):
    """When members of a random object are replaced, only the bytes of their values change."""
    writer = Writer(seed)
    pieces = [*writer.members(3), (None, writer.space())]
    names = [name for name, _ in pieces if name is not None]
    edits = {name: writer.value(2) for name in names if writer.dice.random() < 0.5}
    before = "".join(text for _, text in pieces)
    after = "".join(edits.get(name, text) if name is not None else text for name, text in pieces)
    edited = splice(before.encode(), {name: text.encode() for name, text in edits.items()})
    assert edited == after.encode()
    assert parsed(edited) == {**parsed(before), **{name: parsed(text) for name, text in edits.items()}}


@pytest.mark.parametrize("seed", range(300))
def test_adding_members_puts_them_last_and_leaves_every_byte(seed):
    """New members are added before the closing brace, and the existing bytes keep their order."""
    body = "".join(text for _, text in Writer(seed).members(3)).encode()
    edited = splice(body, {"effort": b'"low"', "chat_template_kwargs": {"enable_thinking": b"false"}})
    added = b'"effort":"low","chat_template_kwargs":{"enable_thinking":false}'
    assert edited.replace(b"," + added if parsed(body) else added, b"") == body
    new = {"effort": "low", "chat_template_kwargs": {"enable_thinking": False}}
    assert list(parsed(edited).items()) == [*parsed(body).items(), *new.items()]


@pytest.mark.parametrize(
    ("body", "edits", "expected"),
    [
        (b"{}", {}, b"{}"),
        (b" { } ", {}, b" { } "),
        (b" { } ", {"a": b"1"}, b' {"a":1 } '),
        (b'{"a":1}', {}, b'{"a":1}'),
        (b'{"a":1}\n', {"a": b"22"}, b'{"a":22}\n'),
        (b'{ "a" : 1 , "b" : 2 }', {"b": b"3", "c": b"4"}, b'{ "a" : 1 , "b" : 3,"c":4 }'),
        (b'{"\\u0061":1}', {"a": b"2"}, b'{"\\u0061":2}'),
        (b'{"a":{"b":1, "c":2}, "d":3}', {"a": {"b": b"5"}}, b'{"a":{"b":5, "c":2}, "d":3}'),
        (b'{"a":{"b":1}}', {"a": {"c": b"2"}}, b'{"a":{"b":1,"c":2}}'),
        (b'{"a":null,"d":3}', {"a": {"c": b"2"}}, b'{"a":{"c":2},"d":3}'),
        (b'{"a":[1]}', {"a": {"c": {"d": b"2"}}}, b'{"a":{"c":{"d":2}}}'),
        (b'{"a":"}","b":"\\"}"}', {"b": b"0"}, b'{"a":"}","b":0}'),
        ('{"ä":"ö","b":1}'.encode(), {"ä": b"2"}, '{"ä":2,"b":1}'.encode()),
        (b'{"x":{"a":1,"a":2},"b":1}', {"b": b"0"}, b'{"x":{"a":1,"a":2},"b":0}'),
        (b'{"a":"\xff","b":1}', {"b": b"0"}, b'{"a":"\xff","b":0}'),
    ],
)
def test_edits_by_example(body: bytes, edits: Edits, expected: bytes):
    """Members are replaced in place and added last, also inside objects, and nothing more changes."""
    assert splice(body, edits) == expected


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"a":2}',
        b'{"a":1,"a":1}',
        b'{"a":1,"b":2,"a":1}',
        b'{"a":1,"b":2,"b":3,"c":4}',
        b'{"a":{},"b":1,"a":{}}',
        b'{"a":1,"\\u0061":2}',
        b'{"b":{"c":1,"c":1},"a":1}',
    ],
)
def test_a_member_that_stands_twice_is_refused(body):
    """JSON readers differ on which one counts, so the router must not route by one while the other is served."""
    with pytest.raises(SpliceError):
        splice(body, {"a": b"0", "b": {"d": b"1"}})


@pytest.mark.parametrize(
    "body",
    [
        b'{"a":1,"\xff":2}',
        b'{"a":1,"\\ud800":2}',
        b'{"a":1,"b":{"\xff":2}}',
    ],
)
def test_a_member_without_a_readable_name_is_refused(body):
    """A name that is not UTF-8 cannot be compared, so the object is refused with SpliceError."""
    with pytest.raises(SpliceError):
        splice(body, {"a": b"0", "b": {"d": b"1"}})


@pytest.mark.parametrize("seed", range(50))
def test_a_random_member_that_is_repeated_is_refused(seed):
    """At any position and in any spelling of its name."""
    writer = Writer(seed)
    pieces = writer.members(2, always=("model",))
    opening = pieces.pop(0)[1]
    keys = [i for i, (name, _) in enumerate(pieces) if name is not None]
    again = (None, f"{writer.space()}{writer.string('model')}:{writer.value(1)}")
    first = writer.dice.random() < 0.5
    pieces = [again, (None, ","), *pieces] if first else [*pieces[:-1], (None, ","), again, pieces[-1]]
    body = opening + "".join(text for _, text in pieces)
    assert len(json.loads(body, object_pairs_hook=list)) == len(keys) + 1
    with pytest.raises(SpliceError):
        splice(body.encode(), {"model": b'"small"'})


# Removal and new names


@pytest.mark.parametrize(
    ("body", "edits", "expected"),
    [
        (b'{"a":1}', {"a": REMOVED}, b"{}"),
        (b'{ "a" : 1 }', {"a": REMOVED}, b"{  }"),
        (b'{"a":1, "b":2}', {"a": REMOVED}, b'{"b":2}'),
        (b'{"a":1, "b":2}', {"b": REMOVED}, b'{"a":1}'),
        (b'{"a":1, "b":2 , "c":3}', {"b": REMOVED}, b'{"a":1 , "c":3}'),
        (b'{"a":1, "b":2 , "c":3}', {"a": REMOVED, "b": REMOVED}, b'{"c":3}'),
        (b'{"a":1, "b":2 , "c":3}', {"b": REMOVED, "c": REMOVED}, b'{"a":1}'),
        (b'{"a":1, "b":2 , "c":3\n}', {"a": REMOVED, "b": REMOVED, "c": REMOVED}, b"{\n}"),
        (b'{"a":1, "b":2}', {"a": REMOVED, "b": REMOVED, "n": b"0"}, b'{"n":0}'),
        (b'{"a":1, "b":2}', {"b": REMOVED, "n": b"0"}, b'{"a":1,"n":0}'),
        (b'{"a":1, "b":2, "c":3}', {"b": REMOVED, "a": b"9", "c": b"8"}, b'{"a":9, "c":8}'),
        (b'{"a":1}', {"b": REMOVED}, b'{"a":1}'),
        (b"{}", {"a": REMOVED, "b": {"c": REMOVED}}, b"{}"),
        (b'{"\\u0061":1,"b":2}', {"a": REMOVED}, b'{"b":2}'),
        (b'{"x":{"a":1, "b":2}, "c":3}', {"x": {"a": REMOVED}}, b'{"x":{"b":2}, "c":3}'),
        (b'{"x":{"a":1}, "c":3}', {"x": {"a": REMOVED}}, b'{"c":3}'),
        (b'{"x":{"a":1}, "c":3}', {"x": {"a": REMOVED, "n": b"0"}}, b'{"x":{"n":0}, "c":3}'),
        (b'{"x":{"y":{"a":1}},"c":3}', {"x": {"y": {"a": REMOVED}}}, b'{"c":3}'),
        (b'{"x":{"y":{"a":1},"z":2},"c":3}', {"x": {"y": {"a": REMOVED}}}, b'{"x":{"z":2},"c":3}'),
        (b'{"x":{}, "c":3}', {"x": {"a": REMOVED}}, b'{"x":{}, "c":3}'),
        (b'{"x":[1], "c":3}', {"x": {"a": REMOVED}}, b'{"x":[1], "c":3}'),
        (b'{"x":null, "c":3}', {"x": {"a": REMOVED, "n": b"0"}}, b'{"x":{"n":0}, "c":3}'),
        (b'{"c":3}', {"x": {"a": REMOVED, "n": b"0"}}, b'{"c":3,"x":{"n":0}}'),
    ],
)
def test_a_removed_member_takes_its_comma_with_it(body: bytes, edits: Edits, expected: bytes):
    """At any place, inside objects, too. An object that loses its last member is removed as well."""
    assert splice(body, edits) == expected


@pytest.mark.parametrize(
    ("body", "edits", "expected"),
    [
        (b'{"a" : 1, "b":2}', {}, b'{"n" : 1, "b":2}'),
        (b'{"\\u0061":1}', {}, b'{"n":1}'),
        (b'{"a":1, "b":2}', {"n": b"7"}, b'{"n":7, "b":2}'),
        (b'{"a":1, "b":2}', {"a": b"7"}, b'{"n":1, "b":2,"a":7}'),
        (b'{"a":1, "b":2}', {"n": REMOVED}, b'{"b":2}'),
        (b'{"a":1, "n":2}', {}, b'{"n":2}'),
        (b'{"n":2, "a":1}', {"n": b"7"}, b'{"n":7}'),
        (b'{"b":2}', {"n": b"7"}, b'{"b":2,"n":7}'),
        (b'{"a":1, "z":3}', {}, b'{"n":1}'),
    ],
)
def test_a_member_gets_another_name(body: bytes, edits: Edits, expected: bytes):
    """Edits use the new name. A member that has it already stays, and the one with the old name goes."""
    assert splice(body, edits, {"a": "n", "z": "n"}) == expected


def test_a_repeated_member_is_not_removed():
    """It is refused, as for any other edit."""
    with pytest.raises(DuplicateMember):
        splice(b'{"a":1,"b":2,"a":3}', {"a": REMOVED})


def edited(value: Any, edits: Edits, renames: dict[str, str]) -> Any:
    """What `splice` promises, on values."""
    out: dict[str, Any] = {}
    for name, member in value.items():
        if name in renames and (renames[name] in value or renames[name] in out):
            continue
        out[renames.get(name, name)] = member
    for name, edit in edits.items():
        if edit == REMOVED:
            out.pop(name, None)
        elif isinstance(edit, bytes):
            out[name] = parsed(edit)
        elif isinstance(out.get(name), dict):
            before, out[name] = out[name], edited(out[name], edit, {})
            if before and not out[name] and not sets(edit):
                del out[name]
        elif sets(edit):
            out[name] = edited({}, edit, {})
    return out


def sets(edit: Any) -> bool:
    return any(map(sets, edit.values())) if isinstance(edit, dict) else edit != REMOVED


def random_edits(writer: Writer, names: list[str], depth: int = 2) -> Edits:
    """Values, removals and edits inside objects, for some of the names."""
    edits: dict[str, Any] = {}
    for name in names:
        kind = writer.dice.randrange(6)
        if kind == 0:
            edits[name] = writer.value(1).encode()
        elif kind < 3:
            edits[name] = REMOVED
        elif kind == 3 and depth:
            edits[name] = random_edits(writer, list(STRINGS[:6]), depth - 1)
    return edits


@pytest.mark.parametrize("seed", range(400))
def test_any_edit_gives_the_json_of_the_same_edit_on_values(seed):
    """Values, removals and new names, in any spelling of the object. The result is always JSON."""
    writer = Writer(seed)
    body = "".join(text for _, text in [*writer.members(3), (None, writer.space())])
    names = [*parsed(body), "new", "other"]
    edits = random_edits(writer, names)
    old, new = writer.dice.sample(names, 2)
    renames = {old: new} if writer.dice.random() < 0.5 else {}
    result = parsed(splice(body.encode(), edits, renames))
    assert result == edited(parsed(body), edits, renames)


@pytest.mark.parametrize("seed", range(300))
def test_one_edit_can_be_turned_into_another(seed):
    """The body of the first attempt can be edited into that of the next one. Removed members come back."""
    writer = Writer(seed)
    body = "".join(text for _, text in writer.members(3, always=("model", "a"))).encode()
    names = [*parsed(body), "added", "too"]
    members = layout(body)

    def some_patches() -> list[Any]:
        renames = {"model": "name"} if writer.dice.random() < 0.3 else None
        return patches(members, random_edits(writer, names), renames)

    first, second = some_patches(), some_patches()
    assert apply(apply(body, first), rebase(body, first, second)) == apply(body, second)
    assert rebase(body, first, first) == []


def test_more_members_than_any_request_has_are_refused():
    """Each member costs time, so their number is limited."""
    body = json.dumps({f"m{i}": i for i in range(MAX_MEMBERS + 1)}).encode()
    with pytest.raises(SpliceError, match="an object in the body has more than 10000 members"):
        splice(body, {"m1": b"2"})
