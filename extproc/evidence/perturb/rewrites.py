"""Rewrites of a request that keep its meaning, by kind of change. Everything random is drawn from a seed.

They are made without a model: typos, letter case, sentences around the request, text after it. A sentence in
another language around the request is not a translation. Rows can bring translations as `variants`.
"""

import random
from collections.abc import Callable

Rewrite = Callable[[str, random.Random], str]

_KEYS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
# The typos of a person in a hurry: one letter in fifteen.
_LETTERS_PER_TYPO = 15


def _typos(text: str, rng: random.Random, count: int) -> str:
    letters = list(text)
    places = [i for i, letter in enumerate(letters) if letter.isascii() and letter.isalpha()]
    for i in rng.sample(places, min(count, len(places))):
        letters[i] = rng.choice((_dropped, _doubled, _neighbour))(letters[i], rng)
    pairs = range(len(letters) - 1)
    for i in rng.sample(pairs, min(count // 2, len(pairs))):
        letters[i : i + 2] = letters[i + 1], letters[i]
    return "".join(letters)


def _dropped(letter: str, rng: random.Random) -> str:
    return ""


def _doubled(letter: str, rng: random.Random) -> str:
    return letter * 2


def _neighbour(letter: str, rng: random.Random) -> str:
    row = next(keys for keys in _KEYS if letter.lower() in keys)
    key = row.index(letter.lower())
    return rng.choice([row[i] for i in (key - 1, key + 1) if 0 <= i < len(row)])


def _one_of(*templates: str) -> Rewrite:
    return lambda text, rng: rng.choice(templates).replace("{}", text)


def _unmarked(text: str, rng: random.Random) -> str:
    return " ".join("".join(c for c in text.lower() if c.isalnum() or c.isspace()).split()) or text


REWRITES: dict[str, Rewrite] = {
    "one typo": lambda text, rng: _typos(text, rng, 1),
    "typos, 1 letter in 15": lambda text, rng: _typos(text, rng, max(2, len(text) // _LETTERS_PER_TYPO)),
    "lower case": lambda text, rng: text.lower(),
    "upper case": lambda text, rng: text.upper(),
    "no punctuation": _unmarked,
    "asked politely": _one_of(
        "Could you please help me with this: {}", "I need some help with the following. {}",
        "I was wondering if you could do this for me. {}", "Please do the following: {}",
    ),
    "greeting before": _one_of("Hi! {}", "Hello there, quick question: {}", "Good morning team. {}", "hey, {}"),
    "thanks after": _one_of(
        "{} Thank you very much in advance!", "{} Thanks a lot, I appreciate it.", "{} Can you do that for me?",
    ),
    "signature after": _one_of(
        "{}\n\nBest regards,\nAlex Morgan\nOperations, Northwind Traders\n+44 20 7946 0018",
        "{}\n\nCheers,\nSam\nSent from my phone",
    ),
    "disclaimer after": _one_of(
        "{}\n\nThis message is confidential and intended only for the person it is addressed to. If you have "
        "received it in error, please delete it and tell the sender.",
    ),
    "log pasted after": _one_of(
        "{}\n\n2026-03-02 11:04:09 INFO worker-3 started\n2026-03-02 11:04:10 WARN disk usage at 91 percent\n"
        "2026-03-02 11:04:12 ERROR worker-3 connection reset by peer\n2026-03-02 11:04:12 INFO retrying in 2 s",
    ),
    "wrapped in another language": _one_of(
        "Hallo, ich brauche bitte Hilfe dabei: {}", "Bonjour, pouvez-vous m'aider avec ceci : {}",
        "Hola, ¿me puedes ayudar con esto? {}", "你好，请帮我处理一下：{}",
    ),
    "other language after": _one_of(
        "{} Bitte antworte auf Deutsch.", "{} Réponds en français, s'il te plaît.",
        "{} Responde en español, por favor.", "{} 请用中文回答。",
    ),
}  # fmt: skip


def rewritten(kind: str, text: str, seed: int, line: int) -> str:
    """`text` after the rewrite of this kind. The same seed and line give the same result."""
    return REWRITES[kind](text, random.Random(f"{seed} {line} {kind}"))
