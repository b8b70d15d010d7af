"""Texts that differ in more than a number, so that each is separate evidence."""


def letters(number: int) -> str:
    """A word for a number: 0 is `a`, 12 is `bc`."""
    return "".join(chr(ord("a") + int(digit)) for digit in str(number))


def number_of(word: str) -> int:
    """The number that `letters` made this word of."""
    return int("".join(str(ord(letter) - ord("a")) for letter in word))
