"""Texts that are about one person, or about one moment. Their answers are never served again.

The rule errs on the side of caution. A principal is often the key of an application with many users, so these texts
are not cached for one principal either.
"""

import re

# Possessives in which people describe themselves and their things.
_OWN_WORDS = """
    my mine myself our ours ourselves
    mein meine meinen meinem meiner meines unser unsere unseren unserem unserer
    mon ma mes notre nos mi mis nuestro nuestra nuestros nuestras mío mía
    mio mia miei mie nostro nostra nostri nostre meu minha meus minhas nosso nossa nossos nossas
    mijn onze mój moja moje moich nasz nasza nasze vår vårt våra
    мой моя моё мое мои моего моей нашего наш наша наше наши benim bizim saya
"""
_OWN = frozenset(_OWN_WORDS.split())
# Scripts without spaces between words.
_OWN_UNSPACED = re.compile(r"我的|我们的|我們的|本人|咱|私の|僕の|俺の|わたしの|自分の|うちの|내|제가|저의|우리")
_WORD = re.compile(r"[^\W\d_]+(?:'[^\W\d_]+)?")
# "How do I", "can we" and "I want to know" are ways to ask. With any other verb, people describe themselves.
_ASKING = re.compile(
    r"\b(?:do|can|could|should|may|must|might|shall|would|will) (?:i|we)\b|"
    r"\bhow (?:i|we) (?:can|could|should|might|would)\b|"
    r"\b(?:i|we) (?:want|need|wish|would like)(?: to|\b)|\bi'd like to\b|"
    r"\bi(?: am|'m| was) (?:wondering|trying to|looking for)\b|\bi wonder\b|"
    r"\b(?:tell|give|show|help|teach|let|explain to|remind) (?:me|us)\b|"
    r"\b(?:to|for) me\b",
    re.IGNORECASE,
)
_SELF = re.compile(r"\b(?:i|i'm|i've|i'd|i'll|we|we're|we've|we'd|we'll|me|us)\b", re.IGNORECASE)
_US_COUNTRY = re.compile(r"\bU\.?S\.?\b")
# An answer of yesterday may be wrong today.
_MOMENT = re.compile(
    r"\b(?:today|tonight|tomorrow|yesterday|now|nowadays|currently|current|latest|newest|recent|recently|"
    r"this (?:week|month|year|morning|afternoon|evening|quarter|weekend)|(?:last|next) (?:week|month|year|night|"
    r"monday|tuesday|wednesday|thursday|friday|saturday|sunday|quarter)|so far|up to date|right away|ago|"
    r"heute|morgen|gestern|jetzt|aktuell\w*|aujourd'hui|demain|hier|maintenant|hoy|mañana|ayer|ahora|oggi|domani|"
    r"ieri|adesso|hoje|amanhã|ontem|agora|vandaag|gisteren|сегодня|завтра|вчера|сейчас)\b|今天|明天|昨天|现在|今日|明日|昨日|오늘|내일|어제|"
    r"\bwhat (?:time|day|date) is it\b|\bwhat(?:'s| is) (?:the (?:time|date)\W*$|new\b(?!.{0,99}\d)|the weather\b)|"
    r"\b(?:any|the) news\b(?! \w+ing)|"
    r"\bweather (?:in|for|at|like|forecast|report)\b|"
    r"\bhow many (?:days|weeks|months|hours) (?:until|till|left|since)\b|"
    r"\bhow old is\b|\b(?:stock|share|bitcoin|gold|oil) prices?\b|\bprice of (?:bitcoin|gold|oil)\b|"
    r"\bexchange rates?\b|\b(?:is|are) [\w' ]{1,30} (?:open|closed|down)\W*$",
    re.IGNORECASE,
)
# Something that has to be another one each time, such as a password.
_NEW = re.compile(
    r"\brandom(?:ly)?\b|\b(?:generate|create|make|suggest|give|invent|propose|pick|choose|need|want)\b.{0,40}"
    r"\b(?:passwords?|passphrases?|uuids?|guids?|nonces?|usernames?|nicknames?)\b|"
    r"\b(?:pick|choose|draw|think of)\b.{0,20}\b(?:number|card|letter)\b|"
    r"\b(?:roll|flip|toss|throw)\b.{0,20}\b(?:die|dice|coins?)\b|\b(?:shuffle|surprise)\b|"
    r"\bzufäll\w*|\bzufalls\w*|\bwürfl?e\b|\baléatoire\w*|\baleat[oó]ri\w*|\bcasuale\b|случайн\w*|随机|隨機|ランダム|무작위",
    re.IGNORECASE,
)
_ABOUT_IT = re.compile(
    r"\W*(?:(?:please|hi|hello|hey)\W+)*(?:what|why|how|when|where|who|which|is|are|does|do|did|explain|define|describe)\b",
    re.IGNORECASE,
)
_IDENTIFIER = re.compile(
    r"(?<![\w.+-])[\w.+-]+@[\w-]+\.[\w.-]+"  # an address of mail; a long word is read once, from its start
    r"|\+\d[\d ()./-]{6,}\d|\(\d{2,5}\)[ \d/-]{5,}\d"  # a telephone
    r"|\b\d(?:[ -]?\d){8,}\b"  # nine digits: an account, a card
    r"|\b[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\b"
    r"|\b(?=\w*[A-Za-z])(?=(?:\w*\d){4})\w{7,}\b"  # letters with four digits: an order, a serial number
    r"|\b[A-Z]{2,5}[-_#]?\d{4,}\b|#\d{4,}\b"
    r"|\b(?i:order|invoice|account|ticket|case|customer|client|contract|policy|reservation|booking|tracking|card|iban"
    r"|member|patient|employee|user|number|no|id)\b[\s.:#-]{0,3}(?:(?i:number|no|nr|id)\b[\s.:#-]{0,3})?\d{4,}\b"
)


def speaks_of_itself(text: str) -> bool:
    """Return whether people describe themselves or their things."""
    if not _OWN.isdisjoint(word.lower() for word in _WORD.findall(text)):
        return True
    if _OWN_UNSPACED.search(text) is not None:
        return True
    return _SELF.search(_ASKING.sub(" ", _US_COUNTRY.sub(" ", text))) is not None


def has_identifier(text: str) -> bool:
    """Return whether the text has an address, a telephone number, or the number of an account or an order."""
    return _IDENTIFIER.search(text) is not None


def is_about_a_moment(text: str) -> bool:
    """Return whether the answer depends on the day or the hour."""
    return _MOMENT.search(text) is not None


def wants_a_new_one(text: str) -> bool:
    """Return whether each answer has to be another one: a password, an id, a throw of dice."""
    return _NEW.search(text) is not None and _ABOUT_IT.match(text) is None
