"""The parts of a text that say nothing about its task: the end of an e-mail, and capital letters.

Requests are often e-mails. A signature or a notice is left out only at the end of a text. If an instruction follows
after a pasted e-mail, both stay.
"""

import re
from itertools import islice

# A line that ends a letter. The name and the address of the writer follow.
_FAREWELLS = """
    (?:with |my )?(?:best|kind|kindest|warm|warmest|many)(?: regards| wishes)|(?:best )?regards|sincerely(?: yours)?
    yours (?:sincerely|faithfully|truly)|cheers|(?:many )?thanks(?: and regards)?|thank you|best|all the best
    (?:mit )?(?:freundlich|herzlich|best)en? gr(?:ü|ue)(?:ß|ss)en?|(?:viele|liebe) gr(?:ü|ue)(?:ß|ss)e|mfg
    (?:bien )?cordialement|bien à vous|sincères salutations|meilleures salutations
    (?:un )?(?:cordial )?saludos?(?: cordiales)?|atentamente|un abrazo
    atenciosamente|cumprimentos|(?:com os )?melhores cumprimentos|abraços
    (?:cordiali|distinti|cari) saluti|met vriendelijke groeten?|med vänliga hälsningar|venlig hilsen|pozdrawiam
    с уважением|saygılarımla|敬具|よろしくお願い(?:いた)?します|此致|祝好|감사합니다|مع التحية
"""
_FAREWELL = re.compile(
    rf"\n[ \t]*(?:{'|'.join('(?:' + line.strip() + ')' for line in _FAREWELLS.strip().splitlines())})"
    r"[ \t]*[,.!，。]?[ \t]*(?=\n|$)",
    re.IGNORECASE,
)
_SIGNATURE_CHARS, _SIGNATURE_LINES, _SIGNATURE_WORDS = 400, 8, 6
# RFC 3676 writes this line above a signature.
_DASHES = re.compile(r"\n-- ?\n")
_SENT_FROM = re.compile(
    r"(?:sent from my|get outlook for|von meinem .{1,30} gesendet|envoyé de mon)\b", re.IGNORECASE
)
# A notice is confidential, and it names its reader or a mistake.
_SECRET = re.compile(
    r"confidential|privileged|vertraulich|confidentiel|confidencial|riservat|vertrouwelijk", re.IGNORECASE
)
_READER = re.compile(
    r"intended|recipient|addressee|addressed to|in error|by mistake|empfänger|bestimmt|irrtümlich|destinat"
    r"|por error|par erreur|por engano|per errore|geadresseerde|vergissing",
    re.IGNORECASE,
)
_PARAGRAPH = re.compile(r"\n[ \t]*\n[ \t\n]*")
_NOTICE_CHARS = 3000
_ANSWER_CHARS = 40
_PARAGRAPHS = 4  # that are left out, or tried, at most
# The name of a question below the material for it, and that of the answer, which may follow.
_QUESTION = re.compile(
    r"^[ \t#*]*(?:(?:user |final )?(?:question|query)|frage|pregunta|domanda|pergunta|вопрос|问题|質問|질문)"
    r"[*]*[ \u00a0]?[:：]",
    re.IGNORECASE | re.MULTILINE,
)
_ANSWER = re.compile(
    r"\n[ \t#*]*(?:(?:helpful |final |your )?(?:answer|response)"
    r"|antwort|réponse|respuesta|risposta|resposta|ответ|回答|答案|답변)"
    r"[*]*[ \u00a0]?[:：]?[*]*\s*\Z",
    re.IGNORECASE,
)
# A text with more letters than this, nearly all of them capitals, is written in capitals.
_SHOUTED_LETTERS, _SHOUTED_SHARE = 12, 0.9


def without_closing(text: str) -> str:
    """Return the text without the signature and the notices at its end. Its first line always stays."""
    kept = text.rstrip()
    if "\n" not in kept:
        return kept
    for _ in range(_PARAGRAPHS):
        start = _notice(kept) or _signature(kept)
        if start is None or not kept[:start].strip():
            break
        kept = kept[:start].rstrip()
    return kept


def asked_below(text: str, least_chars: int) -> str:
    """Return the question that a text names below at least `least_chars` of material, or the text.

    Several questions are examples, or belong together.
    """
    questions = list(islice(_QUESTION.finditer(text), 2))
    if len(questions) != 1 or questions[0].start() < least_chars:
        return text
    asked = text[questions[0].end() :]
    answer = _ANSWER.search(asked[-_ANSWER_CHARS:])
    if answer is not None:
        return asked[: len(asked) - len(asked[-_ANSWER_CHARS:]) + answer.start()]
    return text if _PARAGRAPH.search(asked.strip()) else asked


def _notice(text: str) -> int | None:
    """The position of a notice that is the last paragraph, or None. A question is not a notice."""
    gaps = list(_PARAGRAPH.finditer(text, max(0, len(text) - _NOTICE_CHARS)))
    last = text[gaps[-1].end() :] if gaps else ""
    if not last or "?" in last or "？" in last:
        return None
    is_notice = _SENT_FROM.match(last) or (_SECRET.search(last) and _READER.search(last))
    return gaps[-1].start() if is_notice else None


def _signature(text: str) -> int | None:
    """The position of a signature at the end, or None."""
    tail = max(0, len(text) - _SIGNATURE_CHARS)
    dashes = _DASHES.search(text, tail)
    if dashes is not None:
        return dashes.start()
    farewells = list(_FAREWELL.finditer(text, tail))[-_PARAGRAPHS:]
    return next((found.start() for found in farewells if _is_name(text[found.end() :])), None)


def _is_name(rest: str) -> bool:
    """Whether the lines after a farewell can be a name with an address: few words, and a name has capitals."""
    lines = [line.split() for line in rest.strip().splitlines() if line.strip()]
    if len(lines) > _SIGNATURE_LINES or any(len(words) > _SIGNATURE_WORDS for words in lines) or "?" in rest:
        return False
    return not lines or not any(word[0].islower() for word in lines[0])


def without_shouting(text: str) -> str:
    """Return the text in small letters if it is written in capitals, which encoders know less well."""
    capitals = sum(map(str.isupper, text))
    if capitals <= _SHOUTED_LETTERS * _SHOUTED_SHARE:
        return text  # it may have any number of small letters
    letters = capitals + sum(map(str.islower, text))
    return text.lower() if letters > _SHOUTED_LETTERS and capitals > _SHOUTED_SHARE * letters else text


def encodable(text: str) -> str:
    """The text with halves of surrogate pairs joined or replaced, because a tokeniser rejects them."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text
