"""What a decision writes: whole bodies before and after, so that no other byte can have changed."""

from typing import Any

import pytest

from extproc.api.request import APIS, Request, parse_request
from extproc.api.splice import SpliceError, apply
from extproc.contract.words import Reason
from extproc.routing.mutation import Mutation, mutate
from extproc.routing.policy import Decision, Rung
from extproc.settings import Budget, Dialect, Price, Reasoning, Tier

PATHS: dict[str, str] = {api: path for path, api in APIS.items()}
BODIES = {
    "chat": b'{"messages": [{"role":"user","content":"Sum it up"}],\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
    "completions": b'{"prompt": "Once upon",\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
    "responses": b'{"input": "Sum it up",\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
    "messages": b'{"max_tokens": 9000,\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
}


def tier(dialect: Dialect = "none", name: str = "small", model: str = "m-1") -> Tier:
    return Tier(name, model, "host:80", 8_000, Price(1, 2), dialect)


def read(api: str, body: bytes) -> Request:
    request = parse_request(PATHS[api], body)
    assert request is not None
    return request


def written(api: str, body: bytes, dialect: Dialect = "none", **decision: Any) -> tuple[bytes | None, str]:
    """The body that is sent on, and the word on reasoning."""
    mutation = mutate(Decision(tier(dialect), Reason.MATCHED, **decision), read(api, body))
    assert mutation.cluster == "small"
    return mutation.body, mutation.reasoning


def changed(body: bytes, added: bytes = b"") -> bytes:
    """`body` with the tier's model, and with members `added` after its last one."""
    body = body.replace(b'"auto"', b'"m-1"')
    if not added:
        return body
    end = body.rindex(b"}")
    last = len(body[:end].rstrip())
    return body[:last] + b"," + added + body[last:]


# Reasoning, in each tier's dialect

ENABLE_OFF, ENABLE_ON = (b'"chat_template_kwargs":{"enable_thinking":%s}' % word for word in (b"false", b"true"))
THINKING_OFF, THINKING_ON = (b'"chat_template_kwargs":{"thinking":%s}' % word for word in (b"false", b"true"))


def effort(word: str) -> dict[str, bytes]:
    return {
        "chat": b'"reasoning_effort":"%s"' % word.encode(),
        "responses": b'"reasoning":{"effort":"%s"}' % word.encode(),
    }


def budget(tokens: int) -> bytes:
    return b'"thinking":{"type":"enabled","budget_tokens":%d}' % tokens


def everywhere(added: bytes) -> dict[str, bytes]:
    return dict.fromkeys(("chat", "responses", "messages"), added)


# dialect, what is wanted -> what is added by API ("" elsewhere), and the word for it ("none" elsewhere)
WRITTEN: list[tuple[Dialect, Reasoning, dict[str, bytes], str]] = [
    ("none", False, {}, "none"),
    ("none", True, {}, "none"),
    ("none", Budget(5_000), {}, "none"),
    ("qwen3", False, everywhere(ENABLE_OFF), "off"),
    ("qwen3", True, everywhere(ENABLE_ON), "on"),
    ("qwen3", Budget(5_000), everywhere(ENABLE_ON), "on"),
    ("deepseek", False, everywhere(THINKING_OFF), "off"),
    ("deepseek", True, everywhere(THINKING_ON), "on"),
    ("deepseek", Budget(5_000), everywhere(THINKING_ON), "on"),
    ("gpt-oss", False, effort("low"), "low"),
    ("gpt-oss", True, effort("medium"), "medium"),
    ("gpt-oss", Budget(5_000), effort("medium"), "medium"),
    ("openai", False, effort("none"), "none"),
    ("openai", True, effort("medium"), "medium"),
    ("openai", Budget(2_048), effort("low"), "low"),
    ("openai", Budget(2_049), effort("medium"), "medium"),
    ("openai", Budget(8_192), effort("medium"), "medium"),
    ("openai", Budget(8_193), effort("high"), "high"),
    ("anthropic", False, {"messages": b'"thinking":{"type":"disabled"}'}, "off"),
    ("anthropic", True, {"messages": budget(4_096)}, "on"),
    ("anthropic", Budget(5_000), {"messages": budget(5_000)}, "on"),
]


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize(("dialect", "wanted", "added", "word"), WRITTEN)
def test_reasoning_is_written_in_the_tiers_dialect(api, dialect, wanted, added, word):
    """Off, on or a budget in each dialect and API; where it cannot be said, only the model is written."""
    expected = changed(BODIES[api], added.get(api, b"")), word if api in added else "none"
    assert written(api, BODIES[api], dialect, reasoning=wanted) == expected


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize("dialect", ["none", "qwen3", "openai", "anthropic"])
def test_no_wish_leaves_reasoning_to_the_model(api, dialect):
    """A cohort without `reasoning` changes the model's name and nothing else."""
    assert written(api, BODIES[api], dialect) == (changed(BODIES[api]), "model")


def test_other_template_settings_of_the_client_stay():
    """The one switch is set inside the object that is there."""
    body = b'{"model":"auto", "chat_template_kwargs": { "style": "terse" } }'
    expected = b'{"model":"m-1", "chat_template_kwargs": { "style": "terse","enable_thinking":false } }'
    assert written("chat", body, "qwen3", reasoning=False) == (expected, "off")


# The client's own word

CLIENTS = {
    "effort": (b'"reasoning_effort": "high"', True),
    "no effort": (b'"reasoning_effort": "minimal"', False),
    "enable_thinking": (b'"chat_template_kwargs": {"enable_thinking": true}', True),
    "no enable_thinking": (b'"chat_template_kwargs": {"enable_thinking": false}', False),
    "thinking": (b'"chat_template_kwargs": {"thinking": true}', True),
    "budget": (b'"thinking": {"type": "enabled", "budget_tokens": 9000}', True),
    "no budget": (b'"thinking": {"type": "disabled"}', False),
}


@pytest.mark.parametrize(
    ("word", "dialect"),
    [
        ("effort", "openai"),
        ("no effort", "gpt-oss"),
        ("enable_thinking", "qwen3"),
        ("no enable_thinking", "qwen3"),
        ("thinking", "deepseek"),
    ],
)
@pytest.mark.parametrize("wanted", [None, False, True, Budget(3_000)])
def test_the_clients_word_in_the_tiers_dialect_stands_as_it_is(word, dialect, wanted):
    """Whatever the policy would like, no byte but the model changes."""
    body = b'{"model": "auto", %s, "messages": []}' % CLIENTS[word][0]
    assert written("chat", body, dialect, reasoning=wanted) == (changed(body), "client")


@pytest.mark.parametrize("client", ['{"type": "enabled", "budget_tokens": 3000}', '{"type": "disabled"}'])
@pytest.mark.parametrize("wanted", [None, False, True, Budget(3_000)])
def test_an_anthropic_clients_thinking_stands_as_it_is(client, wanted):
    """Anthropic's dialect has an API of its own."""
    body = b'{"model": "auto", "max_tokens": 4000, "thinking": %s}' % client.encode()
    assert written("messages", body, "anthropic", reasoning=wanted) == (changed(body), "client")


@pytest.mark.parametrize(
    ("word", "dialect", "added", "said"),
    [
        ("effort", "qwen3", ENABLE_ON, "on"),
        ("no effort", "qwen3", ENABLE_OFF, "off"),
        ("effort", "deepseek", THINKING_ON, "on"),
        ("budget", "qwen3", ENABLE_ON, "on"),
        ("no budget", "qwen3", ENABLE_OFF, "off"),
        ("budget", "openai", b'"reasoning_effort":"high"', "high"),
        ("no budget", "openai", b'"reasoning_effort":"none"', "none"),
        ("no budget", "gpt-oss", b'"reasoning_effort":"low"', "low"),
        ("enable_thinking", "openai", b'"reasoning_effort":"medium"', "medium"),
        ("no enable_thinking", "gpt-oss", b'"reasoning_effort":"low"', "low"),
        ("thinking", "openai", b'"reasoning_effort":"medium"', "medium"),
        ("effort", "none", b"", "none"),
        ("effort", "anthropic", b"", "none"),
    ],
)
def test_the_clients_word_is_translated_for_a_tier_that_speaks_another_dialect(word, dialect, added, said):
    """The choice wins wherever the request goes, against the policy's own wish."""
    text, choice = CLIENTS[word]
    body = b'{"model": "auto", "messages": [], %s}' % text
    assert written("chat", body, dialect, reasoning=not choice) == (changed(body, added), said)


@pytest.mark.parametrize(("word", "dialect"), [("enable_thinking", "deepseek"), ("thinking", "qwen3")])
def test_one_templates_switch_is_translated_into_the_others(word, dialect):
    """Both live in chat_template_kwargs: the new one goes in beside the old."""
    new = {"qwen3": b"enable_thinking", "deepseek": b"thinking"}[dialect]
    body = b'{"model": "auto", %s}' % CLIENTS[word][0]
    assert written("chat", body, dialect) == (changed(body).replace(b"true}", b'true,"%s":true}' % new), "on")


@pytest.mark.parametrize(
    ("api", "dialect", "before", "after"),
    [
        ("chat", "openai", b'"reasoning_effort": "high"', b'"reasoning_effort": "none"'),
        ("chat", "gpt-oss", b'"reasoning_effort": "high"', b'"reasoning_effort": "low"'),
        (
            "responses",
            "openai",
            b'"reasoning": {"effort": "high", "summary": "concise"}',
            b'"reasoning": {"effort": "none", "summary": "concise"}',
        ),
        (
            "chat",
            "qwen3",
            b'"chat_template_kwargs": {"enable_thinking" : true}',
            b'"chat_template_kwargs": {"enable_thinking" : false}',
        ),
        (
            "messages",
            "anthropic",
            b'"thinking": {"type": "enabled", "budget_tokens": 3000}',
            b'"thinking": {"type":"disabled"}',
        ),
    ],
)
def test_policy_router_overrides_the_clients_word_in_its_place(api, dialect, before, after):
    """The value changes where it stands; its neighbours stay."""
    body = b'{"max_tokens": 9000, %s, "model": "auto"}' % before
    expected = changed(body).replace(before, after)
    assert written(api, body, dialect, reasoning=False, reasoning_forced=True)[0] == expected


@pytest.mark.parametrize(("api", "dialect"), [("chat", "openai"), ("messages", "anthropic"), ("chat", "qwen3")])
def test_policy_router_without_a_wish_leaves_the_clients_word(api, dialect):
    """A fallback has no opinion on reasoning: what the client chose stands, and the record says so."""
    word = {"openai": "effort", "anthropic": "budget", "qwen3": "enable_thinking"}[dialect]
    body = b'{"max_tokens": 9999, "model": "auto", %s}' % CLIENTS[word][0]
    decision = {"reasoning_forced": True, "max_output_tokens": 500}
    assert written(api, body, dialect, **decision) == (changed(body), "client")


# Anthropic's budget


@pytest.mark.parametrize(
    ("max_tokens", "wanted", "expected"),
    [
        (9_000, Budget(5_000), budget(5_000)),
        (5_001, Budget(5_000), budget(5_000)),
        (5_000, Budget(5_000), budget(4_999)),
        (2_000, True, budget(1_999)),
        (1_025, True, budget(1_024)),
        (1_024, True, b'"thinking":{"type":"disabled"}'),
        (1, Budget(5_000), b'"thinking":{"type":"disabled"}'),
        (9_000, Budget(100), budget(1_024)),
    ],
)
def test_an_anthropic_budget_stays_below_max_tokens(max_tokens, wanted, expected):
    """Anthropic answers 400 to a budget under 1,024 or not below max_tokens; without room thinking is off."""
    body = b'{"model": "auto", "max_tokens": %d}' % max_tokens
    assert written("messages", body, "anthropic", reasoning=wanted)[0] == changed(body, expected)


def test_an_anthropic_budget_is_at_least_what_anthropic_takes():
    """A small budget becomes the least there is, whether or not the client named a cap."""
    body = b'{"model": "auto"}'
    expected = changed(body, budget(1_024)), "on"
    assert written("messages", body, "anthropic", reasoning=Budget(100)) == expected


def test_an_anthropic_budget_stays_below_our_own_cap():
    """The cap that we write counts, too."""
    body = b'{"model": "auto", "max_tokens": 9000}'
    capped = b'{"model": "m-1", "max_tokens": 3000,"thinking":{"type":"enabled","budget_tokens":2999}}'
    decided = {"reasoning": True, "max_output_tokens": 3_000}
    assert written("messages", body, "anthropic", **decided) == (capped, "on")


@pytest.mark.parametrize(
    "beside",
    [
        b'"temperature": 0.2',
        b'"top_k": 5',
        b'"tool_choice": {"type": "any"}',
        b'"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{"}]',
    ],
)
def test_thinking_is_off_where_anthropic_would_refuse_it(beside):
    """An answer without thinking is better than a 400."""
    body = b'{"model": "auto", "max_tokens": 9000, %s}' % beside
    expected = changed(body, b'"thinking":{"type":"disabled"}'), "off"
    assert written("messages", body, "anthropic", reasoning=True) == expected


# The cap on output tokens


@pytest.mark.parametrize(
    ("api", "dialect", "field"),
    [
        ("chat", "none", b"max_tokens"),
        ("chat", "qwen3", b"max_tokens"),
        ("chat", "openai", b"max_completion_tokens"),
        ("completions", "none", b"max_tokens"),
        ("completions", "openai", b"max_tokens"),
        ("responses", "none", b"max_output_tokens"),
        ("responses", "openai", b"max_output_tokens"),
        ("messages", "anthropic", b"max_tokens"),
    ],
)
def test_a_cap_goes_into_the_field_of_the_api(api, dialect, field):
    """A client that named none gets ours, in the field that the tier's server knows."""
    body = b'{"model": "auto", "x": 1}'
    expected = changed(body, b'"%s":512' % field), "model"
    assert written(api, body, dialect, max_output_tokens=512) == expected


@pytest.mark.parametrize(
    ("api", "field"),
    [
        ("chat", b"max_tokens"),
        ("chat", b"max_completion_tokens"),
        ("responses", b"max_output_tokens"),
        ("messages", b"max_tokens"),
    ],
)
@pytest.mark.parametrize(("own", "capped"), [(100, 100), (512, 512), (513, 512), (90_000, 512)])
def test_the_lower_of_two_caps_holds_in_the_field_that_the_client_used(api, field, own, capped):
    """We only ever lower what the client allowed."""
    body = b'{"%s" : %d, "model": "auto"}' % (field, own)
    expected = changed(b'{"%s" : %d, "model": "auto"}' % (field, capped)), "model"
    assert written(api, body, "openai", max_output_tokens=512) == expected


@pytest.mark.parametrize(("effort", "capped"), [("high", False), ("none", True)])
def test_a_cap_does_not_starve_the_thinking_that_a_client_asked_for(effort, capped):
    """A cohort's cap is meant for its short answers: thinking would use it up."""
    body = b'{"model": "auto", "reasoning_effort": "%s"}' % effort.encode()
    expected = changed(body, b'"max_completion_tokens":512' if capped else b"")
    assert written("chat", body, "openai", reasoning=False, max_output_tokens=512) == (expected, "client")


# The rest


def test_model_cap_and_reasoning_are_the_only_bytes_that_change():
    """All three at once, in a body that no library would have written."""
    body = b'\n{"stream":true , "max_tokens":4e3,"max_tokens2" : 1E2,"model":\t"auto","z":"\\ud83d\\ude00 "}\r\n'
    body = body.replace(b"4e3", b"4000")
    expected = body.replace(b"4000", b"300").replace(b'"auto"', b'"m-1"').replace(b'"}\r', b'",%s}\r' % ENABLE_OFF)
    assert written("chat", body, "qwen3", reasoning=False, max_output_tokens=300) == (expected, "off")


def test_a_models_name_is_written_as_json():
    """Quotes in a name cannot break out of the string."""
    decision = Decision(tier(model='org/"m"\\1 ü'), Reason.MATCHED)
    mutation = mutate(decision, read("chat", b'{"model":"auto"}'))
    assert mutation.body == '{"model":"org/\\"m\\"\\\\1 ü"}'.encode()


def test_untouched_requests_keep_every_byte():
    """A decision that rewrites nothing, or a request that could not be read, has a cluster and no body."""
    untouched = Mutation(("small",), body=None, reasoning="client")
    assert mutate(Decision(tier(), Reason.PINNED, rewrite=False), read("chat", BODIES["chat"])) == untouched
    assert mutate(Decision(tier(), Reason.UNREADABLE, rewrite=False), None) == untouched


@pytest.mark.parametrize("body", [b'{"model":"auto","model":"auto"}', b'{"model":"auto","x":1,"\xff":2}'])
def test_what_cannot_be_edited_without_guessing_is_refused(body):
    """A member that stands twice or has no readable name: readers differ on what it says."""
    with pytest.raises(SpliceError):
        mutate(Decision(tier(), Reason.MATCHED), read("chat", body))


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize("dialect", ["none", "qwen3", "deepseek", "gpt-oss", "openai", "anthropic"])
def test_a_rungs_patches_give_what_a_decision_for_it_would_write(api, dialect):
    """Climbing changes the first attempt's body into the one that the rung's tier would have got at once."""
    first, above = tier("qwen3"), tier(dialect, "large", "m-2")
    decision = Decision(
        first, Reason.MATCHED, reasoning=False, max_output_tokens=300, ladder=(Rung(above, True), Rung(first, True))
    )
    climbing = mutate(decision, read(api, BODIES[api]))
    assert climbing.clusters == ("small", "large", "small")
    assert climbing.body is not None
    for rung, changes in zip(decision.ladder, climbing.rungs, strict=True):
        alone = Decision(rung.tier, Reason.MATCHED, reasoning=rung.reasoning, max_output_tokens=300)
        assert apply(climbing.body, changes) == mutate(alone, read(api, BODIES[api])).body
