"""Text -> the vector that is matched, from three views: the whole text, its two ends, and its words.

Intents are *tasks*, but sentence embeddings mostly capture *topics*: "summarize this contract" is near contracts.
So the vector joins three views of the ask:

- the embedding of the whole text
- the embedding of its first and last sentence, where people usually put the instruction
- hashed words, which separate "summarize" from "extract" in any text

Joined into one unit vector, the views cost one inner product. bench/views.py measures what each of them adds.

Courtesies at either end of the ask are removed first. The first sentence would often contain nothing more.
"""

import re
import zlib
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from extproc.encoder.parts import Parts, encode_parts, text_of
from extproc.encoder.protocols import Encoder, Vectors, unit

# Hashed words (signed feature hashing, Weinberger et al. 2009). 2,048 buckets keep ten thousand centroids
# under 100 MB. With twice as many, accuracy did not change beyond noise.
WORD_COLUMNS = 2048
_HASHED_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?|\d+")
# Weight of hashed words relative to the embedding, from cross-validation on CLINC150 and the sample intents.
WORDS_WEIGHT = 0.7
# An apostrophe ends a word here, because phones type a curly one.
_COURTESY_WORD = re.compile(r"[^\W_]+")
# The end of a sentence or clause: with space after it, or in a script that needs none there.
_END = re.compile(r"[:.?!\n](?=\s|$)|[。？！：．｡؟۔।॥。።။។]")
_COLONS = (":", "：")
# Shorter text is a word or two and does not say what to do: "Summary:", "你好。".
_LEAST_WIDTH = 12
# With limits of 80 to 160, more real prompts are right than without one. The difference between them is noise.
_PASTED_WIDTH = 160
# From here on (CJK, kana, Hangul), a character has the content of about three letters.
_WIDE = "\u2e80"
# A clause that has only these words greets, thanks, or states a wish without its content. The list has English
# courtesies and the words between them, but no words that ask ("what", "why") or that name a task or a label. Other
# languages have their greetings and thanks.
_COURTESIES = """
    hi hello hey hiya dear greetings welcome good morning afternoon evening day everyone everybody all team guys
    folks sir madam friend how doing going today hope hoping wish well fine great nice please pls plz kindly could
    can would will shall should may might must help helping assist assistance lend give take got hand look favour
    favor love like want wanted need needed wonder wondering know mind able possible let sorry excuse pardon
    apologies bother bothering trouble question questions request task ask asking following thank thanks thx ty
    cheers appreciate appreciated grateful much many very really advance lovely kind best regards sincerely wishes
    ok okay soon asap quick quickly moment second minute time just now again also i me my we us our you your u it
    they this that these those here there one some any something anything thing things bit little lot a an the to
    for of in on at with about from by out up over and or but so if as is are am was were be been have has had do
    does did s d m ve re ll don t not having get getting gave given giving taking took go come try trying tried
    use using make making done being below above new helpful useful assistant support glad happy pleased pleasure
    meet weekend week night yourself then too only even still maybe perhaps quite rather think sure stuck tell say
    min mins sec seconds yo real more because since
    hola buenos buenas días tardes noches gracias muchas por favor saludos olá oi bom boa dia tarde noite
    obrigado obrigada bonjour bonsoir salut merci beaucoup avance d s il vous te plaît plait cordialement hallo
    guten morgen abend danke vielen dank bitte schön grüße freundlichen mit ciao buongiorno buonasera grazie
    mille cordiali saluti hoi goedemorgen goedemiddag dag bedankt alvast alstublieft hej tack dzień dobry cześć
    dziękuję proszę merhaba selam teşekkürler teşekkür ederim lütfen привет здравствуйте добрый день утро вечер
    спасибо большое заранее пожалуйста привіт дякую مرحبا السلام عليكم شكرا من فضلك नमस्ते धन्यवाद कृपया halo
    terima kasih xin chào cảm ơn bạn สวัสดีครับ สวัสดีค่ะ ขอบคุณครับ ขอบคุณค่ะ 你好 您好 请问 谢谢 谢谢你 谢谢您
    多谢 こんにちは ありがとう ありがとうございます よろしくお願いします お願いします すみません 안녕하세요
    감사합니다 고맙습니다
"""
# Split like the clauses are: a vowel sign of Devanagari is not a letter, so `नमस्ते` has two parts.
_COURTEOUS = frozenset(_COURTESY_WORD.findall(_COURTESIES))
# Short answers to a question that the request does not have. A text of them and of courtesies names no task.
_ANSWERS = """
    yes yeah yep yup no nope nah y n k bye goodbye hmm lol haha continue test ja nein nee oui non sí si
    não sim da tak nie evet hayır да нет नहीं हाँ نعم لا có không ใช่ ไม่ 好 好的
    是 不 是的 はい いいえ 네 아니요 ya tidak
"""
_NO_TASK = _COURTEOUS | frozenset(_COURTESY_WORD.findall(_ANSWERS))
_LONGEST_COURTESY = 80


class FeatureEncoder:
    """Encodes texts into the vectors that are matched, with an encoder of sentences and the weight of words."""

    def __init__(self, sentences: Encoder, words_weight: float = WORDS_WEIGHT) -> None:
        self.sentences, self._words_weight = sentences, words_weight

    def encode(self, texts: Sequence[str]) -> Vectors:
        """Return float32[len(texts), d + 2048], each row of unit length."""
        texts = [without_courtesies(text) for text in texts]
        parts = [instruction_parts(text) for text in texts]
        whole, second = encode_parts(self.sentences, texts, parts)
        instructions = [text_of(*pair) for pair in zip(texts, parts, strict=True)]
        return unit(np.hstack([unit(whole + second), self._words_weight * words_view(texts, instructions)]))


def without_courtesies(text: str) -> str:
    """Return `text` without the clauses of courtesy at either end. Text with no other clause is unchanged."""
    clauses = _clauses(text)
    content = [
        i for i, clause in enumerate(clauses) if not _COURTEOUS.issuperset(_COURTESY_WORD.findall(clause.lower()))
    ]
    if not content:
        return text
    # The clause after a colon belongs to the clause before it.
    last = content[-1] + clauses[content[-1]].endswith(_COLONS)
    return "".join(clauses[content[0] : last + 1]).strip()


def names_no_task(text: str) -> bool:
    """Return whether the text only greets, thanks or agrees, or has no word at all."""
    return len(text) <= _LONGEST_COURTESY and _NO_TASK.issuperset(_COURTESY_WORD.findall(text.lower()))


def instruction(text: str) -> str:
    """Return the first and the last sentence or clause of `text`, or `text`: see `instruction_parts`."""
    return text_of(text, instruction_parts(text))


def instruction_parts(text: str) -> Parts:
    """Return the places of the first and the last sentence or clause of `text`: people write there what they want.

    If one clause follows after a colon or a line break, it is the text to work on, and only the first one is
    returned. An end of more than _PASTED_WIDTH is pasted text and is left out. If that leaves out nothing,
    return no parts.
    """
    clauses = _clauses(text)
    first, last = _count_of_content(clauses), _count_of_content(clauses[::-1])
    if first + last > len(clauses):
        return ()
    ends = (
        _stripped(text, 0, sum(map(len, clauses[:first]))),
        _stripped(text, len(text) - sum(map(len, clauses[-last:])), len(text)),
    )
    if first + last == len(clauses) and clauses[first - 1].endswith((*_COLONS, "\n")):
        return ends[:1]
    written = tuple((start, end) for start, end in ends if _width(text[start:end]) <= _PASTED_WIDTH)
    return written if written != ends or first + last < len(clauses) else ()


def _stripped(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the place of the same part without the space around it."""
    part = text[start:end]
    return end - len(part.lstrip()), start + len(part.rstrip())


def _clauses(text: str) -> list[str]:
    cuts = [0, *(end.end() for end in _END.finditer(text)), len(text)]
    return [text[start:end] for start, end in pairwise(cuts) if start < end] or [text]


def _count_of_content(clauses: Sequence[str]) -> int:
    """Return how many clauses, from the first one on, are at least _LEAST_WIDTH wide together."""
    widths = accumulate(_width(clause.strip()) for clause in clauses)
    return next((count for count, width in enumerate(widths, 1) if width >= _LEAST_WIDTH), len(clauses))


def _width(text: str) -> int:
    return sum(3 if character >= _WIDE else 1 for character in text)


def words_view(texts: Sequence[str], instructions: Sequence[str]) -> Vectors:
    """Return float32[n, 2048] with unit rows: hashed words of the whole text plus those of its instruction."""
    return unit(unit(hashed_words(texts)) + unit(hashed_words(instructions)))


def hashed_words(texts: Sequence[str]) -> Vectors:
    """Return float32[n, 2048]: signed square roots of word counts.

    The first word counts twice. All numbers count as the same word.
    """
    counts = np.zeros((len(texts), WORD_COLUMNS), dtype=np.float32)
    for row, text in zip(counts, texts, strict=True):
        words = ["#" if word[0].isdigit() else word for word in _HASHED_WORD.findall(text.lower())]
        for word in [*words, *(f"^{first}" for first in words[:1])]:
            number = zlib.crc32(word.encode(errors="replace"))
            row[number % WORD_COLUMNS] += 1.0 if number >> 31 else -1.0
    return np.sign(counts) * np.sqrt(np.abs(counts))
