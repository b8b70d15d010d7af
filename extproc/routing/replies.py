"""Replies to a question of the model, such as "two years, after redundancy". Alone they say too little.

A reply is a statement of a few words that asks for nothing. A question, a request and a change of the topic are
asks, also after a question. In doubt a text is an ask.
"""

import re
from collections.abc import Sequence
from typing import Protocol

_MOST_WORDS, _MOST_CHARS = 30, 180
# The end of an answer that is searched for a question, and the most text after the question.
_END_CHARS, _AFTER_CHARS = 600, 80
_MARKS = "?？؟;"
# Not the mark of a formula, such as `a ? b : c`. In Greek a semicolon asks.
_QUESTION = re.compile(r"[?](?=[\s*_)\"'»”\]]|\Z)(?! \S+ :)|[？؟]|(?<=[\u0370-\u03ff]);")
_SENTENCE_ENDS = (". ", "! ", "? ", "\n", "。", "！", "？", "؟ ")
# Answers often end with an offer. The next text is as often a new ask.
_OFFER = re.compile(
    r"""\b(?: (?:any|some)thing\ else | (?:else|more)\ (?:can|could|may|would)\ (?:i|you) | help\ you\ with
    | (?:would\ you\ like|do\ you\ want|want|like|shall|should|can|could|may)\ (?:me|i|us|we)\b(?!\ (?:ask|know
    |assume))
    | would\ you\ like\ (?:to|a|an|some|more|another|the)\b(?!.*\ or\ ) | you'd\ like\ me\ to
    | (?:does|did)\ (?:this|that|it)\ (?:help|make\ sense) | (?:any|other|more|further)\ questions
    | interested\ in | sounds?\ good | sonst\ noch | soll(?:en)?\ (?:ich|wir) | weiterhelfen | (?:noch
    |weitere)\ fragen
    | möchte(?:n\ sie|st\ du),?\ (?:dass|noch) | (?:d')?autres?\ (?:chose|question\w*) | algo\ más
    | (?:voulez-vous|veux-tu|souhaitez-vous)\ que | otra\ (?:cosa|pregunta)
    | (?:quieres|te\ gustaría|le\ gustaría)\ que | qualcos'altro | vuoi\ che | mais\ alguma | quer\ que
    | wil\ je\ dat
    | ещё\ чем | хотите,\ чтобы )\b | 还有什么 | 需要我 | 他に | ほかに | 더\ (?:필요|도와)""",
    re.IGNORECASE | re.VERBOSE,
)
# A text to work on: after a colon, in quotes or in code, or on other lines.
_OWN_TEXT = re.compile(r"[:：]\s*\S|[\"“„«「『`\n<>{}=^]|https?://")
# Verbs that begin a request, in the forms in which people give orders.
_VERBS = r"""
    write|rewrite|translate|explain|summari[sz]e|create|make|give|show|find|calculate|compute|help|compare|describe
    define|generate|draft|suggest|recommend|tell|convert|solve|prove|build|implement|refactor|debug|analy[sz]e
    classify|extract|brainstorm|outline|paraphrase|proofread|correct|teach|simplify|shorten|expand|continue|imagine
    act|pretend|pick|choose|remind|look|search|go|do|run|add|remove|delete|install|deploy|please|let's|lets|recite
    sing|compose|invent|predict|ignore|forget|integrate|derive|evaluate|optimi[sz]e|investigate|migrate|diagnose
    draw|simulate|formulate|critique|assess|provide|determine|demonstrate|devise|visuali[sz]e|discuss|argue
    schreib\w*|übersetz\w*|erklär\w*|fass\w*|erstell\w*|mach|mache|zeig\w*|gib|nenn\w*|such\w*|finde\w*|berechn\w*
    löse|beweise?|integriere|optimiere|entwirf|entwickle|verfasse|formuliere|bestimme|implementiere
    programmier\w*|hilf|plane|prüf\w*|korrigier\w*|vergleich\w*|beschreib\w*|liste|sag|erzähl\w*|bitte
    écri(?:s|vez|re)|tradui\w*|expliqu\w*|résum\w*|cré(?:e|ez|er)|fais|faites|donne\w*|montre\w*|trouve\w*|aide\w*
    corrige\w*|rédige\w*|propose\w*|raconte\w*|dis|calcul\w*|compar\w*
    démontr\w*|prouve\w*|résou\w*|optimise[rz]?|génère|générez
    escrib\w*|traduc\w*|explic\w*|explíc\w*|resum\w*|crea|crear|haz\w*|dime|dame|cuéntame|muéstra\w*|busca\w*
    ayúda\w*|redacta\w*|necesit\w*|demuestr\w*|resuelv\w*|arregla\w*|arrégla\w*|optimiza|genera|diseña
    scriv\w*|spiega\w*|riassum\w*|fammi|dammi|dimmi|mostra\w*|trova\w*|aiuta\w*|confronta\w*|correggi\w*|racconta\w*
    risolv\w*|dimostr\w*|calcol\w*|ottimizza|progetta
    escrev\w*|traduz\w*|expliqu\w*|crie|faça|faz|dê|diga|mostre|encontr\w*|ajud\w*|corrij\w*|preciso|conte|resolv\w*|demonstr\w*|otimize|elabore
    schrijf|vertaal|leg|vat|maak|geef|toon|zoek|vind|bereken|vergelijk|vertel|bewijs|napisz|przetłumacz|wyjaśnij|stwórz
    podaj|pokaż|znajdź|oblicz|pomóż|porównaj|popraw|opowiedz|rozwiąż|udowodnij|skriv|översätt|oversett|oversæt|förklara|forklar
    berätta|lös|løs|bevisa|skapa|напиш\w*|перевед\w*|переклад\w*|объясн\w*|поясн\w*|состав\w*|созда\w*|сделай\w*|дай\w*|покаж\w*|найди\w*
    рассчита\w*|помоги\w*|сравни\w*|исправ\w*|расскаж\w*|скаж\w*|придума\w*
    реши|решите|докаж\w*|вычисли\w*|оптимизируй\w*|проанализируй\w*|scrie|tradu|explică|rezolvă|napiš|přelož|vysvětli
    vyřeš|γράψε|μετάφρασε|εξήγησε|λύσε|kirjoita|käännä|selitä|írj|fordítsd|tulis\w*|buat\w*|jelaskan|terjemahkan
    viết|dịch|hãy|tóm|כתוב|תרגם|הסבר
"""
# Nouns as well: they begin a request if an object follows.
_ALSO_NOUNS = """
    plan|design|test|check|review|list|name|order|book|fix|estimate|report|sort|rank|score|model|answer|code|sketch
    map|research|format|rate|count|change|update|use|cite|quote|reply|schedule|set|turn|call|send
"""
_OBJECT = r"""(?:an?|the|my|our|your|his|her|their|this|these|those|that|me|us|it|them|some|all|any|every|\d+|two
    |three|four|five|ten|for|up|about)\b"""
# Questions that may have no mark, and other polite requests.
_ASKING = r"""
    (?:what|how|why|who|which|whose)(?:'s|'re)?\b(?!\ (?:i|we|my)\b)
    | (?:when|where)\ (?:is|are|was|were|do|does|did|can|could|should|would|will|to)\b
    | (?:can|could|would|will|do|did|does|is|are|was|were|should|may|has|have)\b
    | (?:i|we)(?:'d|\ would)?\ (?:need|want|like|love)\ (?:an?|some|help|you|another|to|more)\b
    | (?:need|looking\ for|searching\ for|trying\ to|any\ (?:tips|ideas?|advice|good|\w+ions?)|best|top
    |pros\ and\ cons|differences?\ between|(?:the\ )?(?:examples?|history|meaning|list|summary|capital|population
    |definition|proof)\ of
    |(?:tips|ideas|recipes?|steps|ways)\ (?:for|to|on))\b
    | (?:an?\ |the\ )?(?:\w+\ )?(?:poem|haiku|limerick|recipe|script|essay|regex|sql|function)
    \ (?:for|about|to|that|of|in)\b
    | (?:never\ ?mind|moving\ on|next\ question|one\ more\ thing|by\ the\ way|btw|on\ another\ note)\b
    | (?:an?|one|the)?\ ?(?:new|different|another|other|separate|quick)\ (?:question|topic|thing|task|subject)\b
    | (?:kannst|können|könntest|könnten|würdest|wie|was|warum|wer|welche\w*|wieso|woher|wieviel)\b
    | ich\ (?:brauche|möchte|will|hätte\ gern\w*)\b | (?:andere|neue|nächste)\ frage\b
    | (?:je\ (?:veux|voudrais)|j'ai\ besoin|j'aimerais|il\ (?:me|nous)\ faut|quiero|quisiera|voglio|vorrei
    |ho\ bisogno|quero|gostaria|мне\ нуж\w+|хочу|potrzebuję|chcę|ik\ wil|jag\ behöver)\b
    | (?:peux-tu|pouvez-vous|pourr\w+|comment|pourquoi|quel(?:le)?s?|qu'est-ce|est-ce|combien)\b
    | (?:puedes|podrías|puede|podría|cómo|qué|cuál\w*|cuánt\w*|dónde|quién)\b
    | (?:puoi|potresti|cosa|qual[ei]?|quant[oaie]|podes|poderia|quanto|onde|quem)\b
    | (?:kun|kunt|zou|hoe|wat|waarom|welke|czy|jak|dlaczego|hur|hvordan|hvad|vad|hva)\b
    | (?:как\w*|что|почему|сколько|где|кто|можешь|можете|чому|як)\b
"""
_FILLERS = r"""(?: (?:ok|okay|so|well|yes|no|yeah|and|but|also|now|then|thanks|thank\ you|great|hmm|instead|just
    |first|next|actually|ja|nein|danke|jetzt|und|oui|non|merci|et|sí|gracias|y|ahora|si|grazie|e|ora|sim|да|нет|а|и)
    [\s,.!;:-]+ ){0,3}"""


def _any_of(words: str) -> str:
    return "|".join(words.split())


_ASKS = re.compile(
    rf"""(?: \A | [.!;,]\s+ | \b(?:and|then|und|et|y|e|и)\s+ ) {_FILLERS}
    (?: (?:{_any_of(_VERBS)})\b(?!['’-]) | (?:{_any_of(_ALSO_NOUNS)})\s+{_OBJECT} | {_ASKING} )""",
    re.IGNORECASE | re.VERBOSE,
)
# The same in scripts whose words are not separated here.
_ASKS_MARKS = re.compile(
    "帮我|给我|请|写|翻译|解释|总结|怎么|什么|如何|生成|吗|ください|下さい|教え|書い|翻訳|説明|とは|お願い|何|どう|か。?$"
    "|证明|实现|修复|优化|列出|推荐|计算(?!机)|^比较(?!.{0,4}的)|我想要|我需要|想知道|作って|まとめて|(?:作成|証明|要約|計算|比較)し"
    "|[해써]\\s?줘|주세요|번역|설명|뭐|어떻게|알려|[까가]요?$|만들어|(?:증명|요약|작성|계산|비교)해"
    "|اكتب|اشرح|ترجم|لخص|احسب|أريد|نريد|أحتاج|نحتاج|كيف|لماذا|ما ه[وي]|أعطني"
    "|(?:लिख|बता|सुना|बना|कर|समझा)(?:ओ|ो|इए|िए| दो)|चाहत|चाहि|अनुवाद|कैसे|क्या|क्यों|เขียน|แปล|อธิบาย"
    "|\\b(?:yaz|hazırla|özetle|çevir|açıkla|anlat|oluştur|hesapla|çöz|kanıtla|listele|düzelt)(?:[ıiuü]n[ıiuü]?z?)?[.!]?$"
)
# Words of a statement in English, and words and forms with which statements begin or end in other languages.
_STATES = re.compile(
    r"""\d | \b(?:the|and|of|to|with|for|about|is|are|was|were|have|has|my|our|we|they|from|but|not|at|by|or
    |since|only|neither|than|i|he|she|after|before|during|without|around|between|mostly|one|two|three|four|five|six|seven|eight|nine|ten|last
    |every|both|i'm|i've|it's|isn't|don't|doesn't|didn't|live|lives)\b | \A(?:yes|no|not|none|nothing|just|all)\b
    | \A(?:ja,\ |nein,\ )?(?:ich|wir|er|sie|es|mein\w*|unser\w*|seit|für|vor|nach|im|am|bei|mit|ohne|nur|etwa
    |ungefähr|rund|nicht|noch|kein\w*|zwei|drei|vier|fünf)\b
    | \A(?:oui,\ |non,\ )?(?:je|j'|nous|il|elle|mon|ma|mes|notre|depuis|pour|après|avant|dans|avec|sans|seulement
    |environ|pas|deux|trois|quatre|cinq)
    | \A(?:sí,\ |no,\ )?(?:yo|mis?|tengo|vivo|soy|estoy|somos|nuestr\w+|desde|después|hace|antes|unos|unas|dos|tres
    |solo)\b
    | \A(?:sì,\ |no,\ )?(?:io|mio|mia|sono|ho|abito|da|per|dopo|prima|circa|due|tre)\b
    | \A(?:sim,\ |não,\ )?(?:eu|meu|minha|sou|tenho|moro|trabalho|há|depois|cerca|dois|duas|três)\b
    | \A(?:ja,\ |nee,\ )?(?:ik|wij|mijn|sinds|na|alleen|twee|drie|jag|vi|min|sedan|efter|två|bara)\b
    | \A(?:tak,\ |nie,\ )?(?:mam|mój|moja|jestem|mieszkam|od|po|około|tylko|dwa|trzy)\b
    | \A(?:да,\ |нет,\ )?(?:я|мы|у|мне|мой|моя|с|для|после|около|только|два|две|три)\b | \A(?:iki|üç|ben|benim
    |evde)\b
    | \A(?:أنا|لدي|أعيش|نحن|سنتان|منذ|بعد) | \A(?:मैं|मेर|हम) | 我|之后|以前|左右|[两三四五六七八九十]
    | (?:です|ます|ました|でした)。?\Z | (?:니다|이에요|예요)\.?\Z""",
    re.IGNORECASE | re.VERBOSE,
)


class TurnLike(Protocol):
    """A turn of a request."""

    @property
    def role(self) -> str: ...
    @property
    def texts(self) -> Sequence[str]: ...


def replies_to(before: TurnLike, text: str) -> bool:
    """Return whether a text of a person may be the reply to the turn before it."""
    if before.role != "assistant" or not before.texts or len(text) > _MOST_CHARS:
        return False
    return asks_back(before.texts[-1]) and is_reply(text)


def asks_back(answer: str) -> bool:
    """Return whether an answer ends with a question to the person. An offer of more help is not one."""
    end = answer[-_END_CHARS:].rstrip()
    last = max(map(end.rfind, _MARKS))
    if last < 0 or len(end) - last > _AFTER_CHARS or not _QUESTION.search(end, last - 1 if last else 0):
        return False
    begin = max(end.rfind(mark, 0, last) for mark in _SENTENCE_ENDS) + 1
    return _OFFER.search(end[begin : last + 1]) is None


def is_reply(text: str) -> bool:
    """Return whether a text after a question states something and asks for nothing."""
    if len(text) > _MOST_CHARS or len(text.split()) > _MOST_WORDS:
        return False
    return not asks_for_something(text) and _OWN_TEXT.search(text) is None and _STATES.search(text) is not None


def asks_for_something(text: str) -> bool:
    """Return whether a text has a question, or a request of one of the known languages."""
    return any(pattern.search(text) for pattern in (_QUESTION, _ASKS, _ASKS_MARKS))
