"""Mutations: whole bodies before and after, so that a change of any other byte fails a test."""

from typing import Any, get_args

import pytest

from extproc.api.paths import APIS
from extproc.api.request import Request, parse_request
from extproc.api.splice import SpliceError, apply
from extproc.contract.words import Reason
from extproc.routing.decision import Decision
from extproc.routing.mutation import Mutation, mutate
from extproc.routing.policy import Rung
from extproc.settings import Budget, Dialect, Price, Reasoning, Tier

PATHS: dict[str, str] = {api: path for path, api in APIS.items()}
BODIES = {
    "chat": b'{"messages": [{"role":"user","content":"Sum it up"}],\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
    "completions": b'{"prompt": "Once upon",\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
    "responses": b'{"input": "Sum it up",\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
    "messages": b'{"max_tokens": 9000,\n "model" : "auto", "x": [1.0, "\\u00e4"] }',
}


def tier(dialect: Dialect = "none", name: str = "small", model: str = "m-1") -> Tier:
    return Tier(name, model, "http://host:80", 8_000, Price(1, 2), dialect)


def read(api: str, body: bytes) -> Request:
    request = parse_request(PATHS[api], body)
    assert request is not None
    return request


# An older model of Anthropic, which takes budgets.
BUDGETS = "claude-haiku-4-5"


def written(
    api: str, body: bytes, dialect: Dialect = "none", model: str = "m-1", **decision: Any
) -> tuple[bytes | None, str]:
    """The body that is sent on, and the word for its reasoning."""
    mutation = mutate(Decision(tier(dialect, model=model), Reason.MATCHED, **decision), read(api, body))
    assert mutation.cluster == "small"
    return mutation.body, mutation.reasoning


def changed(body: bytes, added: bytes = b"", model: str = "m-1") -> bytes:
    """`body` with the tier's model, and with members `added` after its last one."""
    body = body.replace(b'"auto"', b'"%s"' % model.encode())
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


# Dialect and setting -> the added field of each API, and the word for it. Other APIs get no field and "none". The
# policy puts itself first, because a client of the Messages API gets no thinking otherwise.
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
    ("gemini", False, {"chat": effort("low")["chat"]}, "low"),
    ("gemini", True, {"chat": effort("medium")["chat"]}, "medium"),
    ("gemini", Budget(9_000), {"chat": effort("high")["chat"]}, "high"),
    ("anthropic", False, {"messages": b'"output_config":{"effort":"low"}'}, "low"),
    ("anthropic", True, {"messages": b'"thinking":{"type":"adaptive"}'}, "on"),
    (
        "anthropic",
        Budget(5_000),
        {"messages": b'"thinking":{"type":"adaptive"},"output_config":{"effort":"medium"}'},
        "medium",
    ),
]


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize(("dialect", "wanted", "added", "word"), WRITTEN)
def test_reasoning_is_written_in_the_tiers_dialect(api, dialect, wanted, added, word):
    """Off, on or a budget in each dialect and API. If there is no field for it, only the model is written."""
    expected = changed(BODIES[api], added.get(api, b"")), word if api in added else "none"
    assert written(api, BODIES[api], dialect, reasoning=wanted, reasoning_forced=True) == expected


@pytest.mark.parametrize(
    ("wanted", "added", "word"),
    [
        (False, b'"thinking":{"type":"disabled"}', "off"),
        (True, budget(4_096), "on"),
        (Budget(5_000), budget(5_000), "on"),
    ],
)
def test_an_older_model_of_anthropic_gets_a_budget(wanted, added, word):
    """A budget in tokens, or off."""
    expected = changed(BODIES["messages"], added, BUDGETS), word
    decided = {"reasoning": wanted, "reasoning_forced": True}
    assert written("messages", BODIES["messages"], "anthropic", BUDGETS, **decided) == expected


@pytest.mark.parametrize("dialect", ["qwen3", "deepseek", "anthropic"])
@pytest.mark.parametrize("wanted", [True, Budget(5_000)])
def test_a_message_gets_no_thinking_that_neither_client_nor_policy_asked_for(dialect, wanted):
    """Thinking changes the shape of the answer. `reasoning_choice: router` is how a policy asks for it."""
    expected = changed(BODIES["messages"]), "model"
    assert written("messages", BODIES["messages"], dialect, reasoning=wanted) == expected


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize("dialect", ["none", "qwen3", "openai", "anthropic"])
def test_without_a_setting_the_model_decides_on_reasoning(api, dialect):
    """A cohort without `reasoning` changes only the model's name."""
    assert written(api, BODIES[api], dialect) == (changed(BODIES[api]), "model")


def test_other_template_settings_of_the_client_stay():
    """Only one switch is added to the client's object."""
    body = b'{"model":"auto", "chat_template_kwargs": { "style": "terse" } }'
    expected = b'{"model":"m-1", "chat_template_kwargs": { "style": "terse","enable_thinking":false } }'
    assert written("chat", body, "qwen3", reasoning=False) == (expected, "off")


# The client's own choice

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
        ("enable_thinking", "qwen3"),
        ("no enable_thinking", "qwen3"),
        ("thinking", "deepseek"),
    ],
)
@pytest.mark.parametrize("wanted", [None, False, True, Budget(3_000)])
def test_the_clients_choice_in_the_tiers_dialect_is_unchanged(word, dialect, wanted):
    """Only the model changes, for any setting of the policy."""
    body = b'{"model": "auto", %s, "messages": []}' % CLIENTS[word][0]
    assert written("chat", body, dialect, reasoning=wanted) == (changed(body), "client")


@pytest.mark.parametrize("client", ['{"type": "enabled", "budget_tokens": 3000}', '{"type": "disabled"}'])
@pytest.mark.parametrize("wanted", [None, False, True, Budget(3_000)])
def test_an_anthropic_clients_thinking_is_unchanged(client, wanted):
    """Anthropic's dialect uses the messages API."""
    body = b'{"model": "auto", "max_tokens": 4000, "thinking": %s}' % client.encode()
    expected = changed(body, model=BUDGETS), "client"
    assert written("messages", body, "anthropic", BUDGETS, reasoning=wanted) == expected


@pytest.mark.parametrize(
    ("word", "dialect", "added", "record"),
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
        ("no effort", "gpt-oss", b'"reasoning_effort":"low"', "low"),
        ("effort", "anthropic", b"", "none"),
    ],
)
def test_the_clients_choice_is_translated_for_a_tier_with_another_dialect(word, dialect, added, record):
    """It overrides the setting of the policy on every tier, and the client's own field is taken out."""
    text, choice = CLIENTS[word]
    body = b'{"model": "auto", "messages": [], %s}' % text
    if added.startswith(text.partition(b":")[0]):  # the same field
        expected = changed(body).replace(text, added.replace(b":", b": ", 1))
    else:
        expected = changed(body.replace(b", " + text, b""), added)
    assert written("chat", body, dialect, reasoning=not choice) == (expected, record)


def test_a_tier_without_a_dialect_gets_the_clients_own_words():
    """Nothing is known about it."""
    body = b'{"model": "auto", "reasoning_effort": "high", "thinking": {"type": "adaptive"}, "top_k": 5}'
    assert written("chat", body, "none", reasoning=False) == (changed(body), "none")


@pytest.mark.parametrize(("word", "dialect"), [("enable_thinking", "deepseek"), ("thinking", "qwen3")])
def test_one_templates_switch_is_translated_into_the_others(word, dialect):
    """Both are members of chat_template_kwargs."""
    old, new = (
        b'{"%s": true}' % word.encode(),
        b'{"%s":true}' % {"qwen3": b"enable_thinking"}.get(dialect, b"thinking"),
    )
    body = b'{"model": "auto", %s}' % CLIENTS[word][0]
    assert written("chat", body, dialect) == (changed(body).replace(old, new), "on")


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
def test_policy_router_replaces_the_clients_choice(api, dialect, before, after):
    """The value changes, and the members around it do not."""
    body = b'{"max_output_tokens": 9000, %s, "model": "auto"}' % before
    model = BUDGETS if dialect == "anthropic" else "m-1"
    expected = changed(body, model=model).replace(before, after)
    assert written(api, body, dialect, model, reasoning=False, reasoning_forced=True)[0] == expected


@pytest.mark.parametrize(("api", "dialect"), [("chat", "openai"), ("messages", "anthropic"), ("chat", "qwen3")])
def test_policy_router_without_a_setting_keeps_the_clients_choice(api, dialect):
    """A fallback sets no reasoning, so the client's choice is kept, and the record shows it."""
    word = {"openai": "effort", "anthropic": "budget", "qwen3": "enable_thinking"}[dialect]
    body = b'{"model": "auto", %s}' % CLIENTS[word][0]
    model = BUDGETS if dialect == "anthropic" else "m-1"
    decision = {"reasoning_forced": True, "max_output_tokens": 500}
    assert written(api, body, dialect, model, **decision) == (changed(body, model=model), "client")


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
    """Anthropic answers 400 to a budget below 1,024 or not below max_tokens. If none fits, thinking is off."""
    body = b'{"model": "auto", "max_tokens": %d}' % max_tokens
    decided = {"reasoning": wanted, "reasoning_forced": True}
    assert written("messages", body, "anthropic", BUDGETS, **decided)[0] == changed(body, expected, BUDGETS)


def test_an_anthropic_budget_is_at_least_the_lowest_accepted_one():
    """A smaller budget is raised, even if the client set no cap."""
    body = b'{"model": "auto"}'
    expected = changed(body, budget(1_024), BUDGETS), "on"
    decided = {"reasoning": Budget(100), "reasoning_forced": True}
    assert written("messages", body, "anthropic", BUDGETS, **decided) == expected


def test_an_anthropic_budget_stays_below_our_own_cap():
    """A cap that we write also limits the budget."""
    body = b'{"model": "auto", "max_tokens": 9000}'
    capped = b'{"model": "%s", "max_tokens": 3000,"thinking":{"type":"enabled","budget_tokens":2999}}'
    decided = {"reasoning": True, "reasoning_forced": True, "max_output_tokens": 3_000}
    assert written("messages", body, "anthropic", BUDGETS, **decided) == (capped % BUDGETS.encode(), "on")


@pytest.mark.parametrize(
    "beside",
    [
        b'"temperature": 0.2',
        b'"top_k": 5',
        b'"tool_choice": {"type": "any"}',
        b'"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "{"}]',
    ],
)
def test_thinking_is_off_if_anthropic_would_reject_it(beside):
    """An answer without thinking is better than a 400."""
    body = b'{"model": "auto", "max_tokens": 9000, %s}' % beside
    expected = changed(body, b'"thinking":{"type":"disabled"}', BUDGETS), "off"
    decided = {"reasoning": True, "reasoning_forced": True}
    assert written("messages", body, "anthropic", BUDGETS, **decided) == expected


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
    """A client without a cap gets ours, in the field that the tier's server knows."""
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
@pytest.mark.parametrize(("clients_cap", "capped"), [(100, 100), (512, 512), (513, 512), (90_000, 512)])
def test_the_lower_of_two_caps_is_set_in_the_field_that_the_client_used(api, field, clients_cap, capped):
    """We never raise the client's cap."""
    body = b'{"%s" : %d, "model": "auto"}' % (field, clients_cap)
    expected = changed(b'{"%s" : %d, "model": "auto"}' % (field, capped)), "model"
    assert written(api, body, "qwen3", max_output_tokens=512) == expected


@pytest.mark.parametrize(("cap", "capped"), [(None, 900), (500, 500), (2_000, 900)])
def test_openai_gets_the_clients_cap_under_the_name_that_it_knows(cap, capped):
    """Its reasoning models refuse `max_tokens`, with or without a cap of ours."""
    body = b'{"max_tokens" : 900, "model": "auto"}'
    expected = b'{"max_completion_tokens" : %d, "model": "m-1"}' % capped
    assert written("chat", body, "openai", max_output_tokens=cap) == (expected, "model")


@pytest.mark.parametrize(("effort", "capped"), [("high", False), ("none", True)])
def test_no_cap_is_set_if_the_client_requested_thinking(effort, capped):
    """A cohort's cap is meant for short answers, and thinking would use it up."""
    body = b'{"model": "auto", "reasoning_effort": "%s"}' % effort.encode()
    expected = changed(body, b'"max_completion_tokens":512' if capped else b"")
    assert written("chat", body, "openai", reasoning=False, max_output_tokens=512) == (expected, "client")


# The rest


def test_model_cap_and_reasoning_are_the_only_bytes_that_change():
    """All three change together, in a body with unusual spacing and escapes."""
    body = b'\n{"stream":true , "max_tokens":4e3,"max_tokens2" : 1E2,"model":\t"auto","z":"\\ud83d\\ude00 "}\r\n'
    body = body.replace(b"4e3", b"4000")
    expected = body.replace(b"4000", b"300").replace(b'"auto"', b'"m-1"').replace(b'"}\r', b'",%s}\r' % ENABLE_OFF)
    assert written("chat", body, "qwen3", reasoning=False, max_output_tokens=300) == (expected, "off")


def test_a_models_name_is_written_as_json():
    """Quotes in a name cannot end the string."""
    decision = Decision(tier(model='org/"m"\\1 ü'), Reason.MATCHED)
    mutation = mutate(decision, read("chat", b'{"model":"auto"}'))
    assert mutation.body == '{"model":"org/\\"m\\"\\\\1 ü"}'.encode()


def test_untouched_requests_keep_every_byte():
    """A decision without a rewrite, or a request that could not be read, gives a cluster and no body."""
    untouched = Mutation(("small",), body=None, reasoning="client")
    assert mutate(Decision(tier(), Reason.PINNED, rewrite=False), read("chat", BODIES["chat"])) == untouched
    assert mutate(Decision(tier(), Reason.UNREADABLE, rewrite=False), None) == untouched


@pytest.mark.parametrize("body", [b'{"model":"auto","model":"auto"}', b'{"model":"auto","\xff":1,"\xff":2}'])
def test_an_ambiguous_body_is_not_edited(body):
    """Readers disagree about a member that is present twice or has an unreadable name."""
    with pytest.raises(SpliceError):
        mutate(Decision(tier(), Reason.MATCHED), read("chat", body))


@pytest.mark.parametrize("api", BODIES)
@pytest.mark.parametrize("dialect", get_args(Dialect))
def test_a_rungs_patches_give_the_body_of_a_decision_for_it(api, dialect):
    """The patched body of the first attempt equals the body of a request that starts at that tier."""
    first, above = tier("qwen3"), tier(dialect, "large", "m-2")
    decision = Decision(
        first, Reason.MATCHED, reasoning=False, max_output_tokens=300, ladder=(Rung(above, True), Rung(first, True))
    )
    mutation = mutate(decision, read(api, BODIES[api]))
    assert mutation.clusters == ("small", "large", "small")
    assert mutation.body is not None
    for rung, changes in zip(decision.ladder, mutation.rungs, strict=True):
        alone = Decision(rung.tier, Reason.MATCHED, reasoning=rung.reasoning, max_output_tokens=300)
        assert apply(mutation.body, changes) == mutate(alone, read(api, BODIES[api])).body
