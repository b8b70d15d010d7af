"""Editing JSON in place: all bytes that are not edited stay the same, in any valid spelling."""

import json
import random
from typing import Any

import pytest

from extproc.api.splice import MAX_MEMBERS, Edits, SpliceError, apply, patches, rebase, splice

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


@pytest.mark.parametrize("seed", range(100))
def test_one_edit_can_be_turned_into_another(seed):
    """The body of the first attempt can be edited into the body of the next one, with the same bytes."""
    writer = Writer(seed)
    body = "".join(text for _, text in writer.members(3, always=("model", "a"))).encode()
    members = [name for name in parsed(body) if name != "a"] + ["added", "too"]

    def some_edits() -> dict[str, Any]:
        chosen = {name: writer.value(2).encode() for name in members if writer.dice.random() < 0.5}
        return {**chosen, "a": {"b": writer.value(1).encode()}} if writer.dice.random() < 0.7 else chosen

    first, second = patches(body, some_edits()), patches(body, some_edits())
    assert apply(apply(body, first), rebase(body, first, second)) == apply(body, second)
    assert rebase(body, first, first) == []


def test_more_members_than_any_request_has_are_refused():
    """Each member costs time, so their number is limited."""
    body = json.dumps({f"m{i}": i for i in range(MAX_MEMBERS + 1)}).encode()
    with pytest.raises(SpliceError, match="an object in the body has more than 10000 members"):
        splice(body, {"m1": b"2"})
