"""Replies to a question of the model, and asks that come after one."""

import asyncio

import msgspec
import pytest

from extproc.routing.ask import Ask, find_ask
from extproc.routing.replies import asks_back, is_reply
from extproc.routing.routed import Routed
from extproc.routing.router import Router
from tests.routing.test_ask import user
from tests.routing.test_follow_up import SUE, router

__all__ = ["router"]  # a fixture

_LONG = "How long have you worked there?"


class Answer(msgspec.Struct):
    """A turn of the model."""

    texts: tuple[str, ...]
    role: str = "assistant"
    tool_result: bool = False


@pytest.mark.parametrize(
    "text",
    [
        "Two years, after redundancy",
        "About 40 square metres, north-facing",
        "Python 3.11 on Ubuntu",
        "It throws a KeyError on line 12",
        "I was diagnosed last spring and take metformin",
        "Neither, I rent it out",
        "Formal, addressed to the landlord",
        "Test environment, not production",
        "Books about the sea and old maps",
        "All of them except the Spanish version",
        "Less than a thousand dollars a month",
        "For an audience of teenagers at a school",
        "Zwei Jahre, nach betriebsbedingter Kündigung",
        "Im Mietvertrag steht nichts dazu",
        "Deux ans, après un licenciement économique",
        "Vivo en Madrid con mis padres",
        "Sono italiano ma vivo in Germania",
        "Trabalho numa escola pública",
        "Ik heb een hond en een grote tuin",
        "Jag bor i en lägenhet med balkong",
        "Entwickler seit 5 Jahren",
        "Los lunes y martes, después de las 5",
        "Generalmente 3 veces por semana",
        "比较安静的房间，两个人",
        "मैं खाना बनाता हूँ",
        "benim iki çocuğum var",
        "We moved out in March, and I argue with the landlord",
        "Mieszkam w bloku na czwartym piętrze",
        "Два года, после сокращения",
        "両親と三人で東京に住んでいます",
        "两年，被裁员之后",
        "저는 서울에 사는 직장인입니다",
        "أعيش في القاهرة مع عائلتي",
        "मैं दिल्ली में रहता हूँ और पढ़ाता हूँ",
    ],
)
def test_a_statement_may_be_a_reply(text: str) -> None:
    assert is_reply(text)


@pytest.mark.parametrize(
    "text",
    [
        "Write a haiku about snow",
        "Thanks. Now translate the menu into German",
        "Change of plan, write the tests first",
        "What's the weather in Oslo",
        "how do I boil an egg",
        "Who painted the Night Watch",
        "Is Pluto a planet",
        "One more thing, does aspirin thin the blood",
        "Could someone explain how inflation works",
        "I need a Python script that parses CSV files",
        "I'd like some ideas for a birthday party",
        "Looking for a good dentist in Leeds",
        "Any tips for a job interview",
        "Pros and cons of electric cars",
        "Name three rivers in Africa",
        "Review my pull request for race conditions",
        "My code crashes, fix it",
        "Solve x^2 - 5x + 6 = 0",
        "Classify this review: the soup was cold",
        'My boss wrote "you are late again"',
        "The rules are these.\nEach player takes a card",
        "We have a house, and " * 10,
        "Danke, und jetzt schreibe bitte eine Absage",
        "Ich brauche ein Rezept für Lasagne",
        "Unterschied zwischen HTTP und HTTPS",
        "Peux-tu résumer le dernier chapitre",
        "Dime la capital de Australia",
        "Scrivi una poesia sulla neve",
        "Me explique a fotossíntese",
        "Geef me een recept voor pannenkoeken",
        "Berätta en saga om en björn",
        "Opowiedz mi żart",
        "Напиши стихотворение о снеге",
        "Bana bir fıkra anlat",
        "雪についての俳句を書いてください",
        "帮我写一首关于雪的诗",
        "눈에 대한 시를 써줘",
        "احك لي نكتة",
        "एक कविता सुनाओ",
        "Derive the gradient of the softmax from its definition",
        "Optimize the query for 10 million rows",
        "Diagnose the deadlock in the scheduler",
        "A Python script to rename all files in a folder",
        "The capital of Australia",
        "3x + 4 = 10, and x is whole",
        "We need a threat model for our API",
        "Beweise, dass 17 eine Primzahl ist",
        "Démontre que 17 est premier",
        "Demuestra que 17 es primo",
        "Quiero un plan de viaje de 3 días",
        "Dimostra che 17 è primo",
        "Rozwiąż zadanie 3 ze strony 5",
        "Докажи, что 17 простое",
        "Мне нужен договор аренды",
        "证明17是素数",
        "17が素数であることを証明して",
        "10개 문장으로 요약해",
        "benim için bir şiir yaz",
        "मेरे लिए एक कविता लिखो",
        "نحن نحتاج إلى عقد إيجار",
        "Γράψε 3 προτάσεις για σκύλους",
    ],
)
def test_a_request_or_a_question_is_no_reply(text: str) -> None:
    assert not is_reply(text)


@pytest.mark.parametrize(
    "answer",
    [
        _LONG,
        "I can help with that. **Which country do you live in?**",
        "Before I answer: when did you sign it, and who was present? Once I know, I can be precise.",
        "Could you tell me:\n1. How big is the flat?\n2. Which floor is it on?",
        "Would you like it formal or informal?",
        "May I ask how old the building is?",
        "Do you prefer a window or an aisle seat? 😊",
        "Wie lange arbeiten Sie dort schon?",
        "您在那里工作多久了？",
        "Πόσο καιρό δουλεύετε εκεί;",
    ],
)
def test_a_question_at_the_end_wants_a_reply(answer: str) -> None:
    assert asks_back(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "It depends on the law.",
        "Is there anything else I can help you with?",
        "How can I help you today?",
        "Here is the poem. Shall I translate it too?",
        "Would you like me to write it?",
        "Do you want me to add tests?",
        "Would you like another joke?",
        "Does that help?",
        "Kann ich sonst noch helfen?",
        "¿Quieres que lo traduzca?",
        "Souhaitez-vous que je le traduise ?",
        "It is `a ? b : c` in C.",
        "Is a hot dog a sandwich? The law of New York says yes, and most cooks say no, because the bread is whole.",
        "",
    ],
)
def test_an_offer_of_more_wants_none(answer: str) -> None:
    assert not asks_back(answer)


def test_a_reply_is_joined_to_the_ask_before_the_question() -> None:
    """Also over several questions. Alone it is a guess."""
    first, second = "Which notice period applies if I am dismissed by my company?", "Two years, after redundancy"
    ask = find_ask([user(first), Answer((_LONG,)), user(second)])
    assert (ask.text, ask.source) == (f"{first}\n{second}", "joined")
    assert ask.alone == Ask(second, "last_user", len(second), False, guess=True)
    ask = find_ask(
        [user(first), Answer((_LONG,)), user(second), Answer(("Where?",)), user("In Berlin, since 2019")]
    )
    assert ask.text == f"{first}\n{second}\nIn Berlin, since 2019"


@pytest.mark.parametrize(
    ("answer", "last"),
    [
        ("Four weeks.", "Two years, after redundancy"),
        ("Four weeks. Can I do anything else?", "Two years, after redundancy"),
        (_LONG, "Write a haiku about snow"),
    ],
)
def test_an_ask_stays_alone(answer: str, last: str) -> None:
    """Without a question of the model, and if it asks for something."""
    ask = find_ask([user("Which notice period applies?"), Answer((answer,)), user(last)])
    assert (ask.text, ask.source, ask.guess) == (last, "last_user", False)


def routed(router: Router, *texts: str) -> Routed:
    """The decision on a conversation of the person and the model."""
    roles = ("user", "assistant") * len(texts)
    messages = [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]
    body = msgspec.json.encode({"model": "auto", "messages": messages})
    return asyncio.run(router.route(body, {":path": "/v1/chat/completions"}))


@pytest.mark.parametrize(
    ("texts", "decision"),
    [
        ((SUE, _LONG, "two years, after redundancy"), ("matched", "large")),
        (("cook soup and bake bread", "For how many?", "for seven, and one eats no fish"), ("matched", "small")),
        (("cook soup and bake bread", "For how many?", "the landlord and I break lease"), ("matched", "large")),
        (("cook soup and bake bread", "Like it?", "tell me if I may break lease"), ("matched", "large")),
        # Alone these words belong to no cohort, and without the question they go to the default tier.
        (("cook soup and bake bread", "For how many?", "ninety of my best friends"), ("matched", "small")),
        (("cook soup and bake bread", "Enjoy.", "ninety of my best friends"), ("out_of_scope", "large")),
    ],
)
def test_a_reply_is_decided_by_its_conversation(
    router: Router, texts: tuple[str, ...], decision: tuple[str, str]
) -> None:
    """It goes to a higher tier only if it is clearly of another cohort."""
    result = routed(router, *texts)
    assert (result.decision.reason, result.decision.tier.name) == decision
