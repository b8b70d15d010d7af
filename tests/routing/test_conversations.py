"""Conversations: their identity, their memory of earlier requests, and the tier that they stay at."""

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest

from extproc.api.request import parse_request
from extproc.contract.words import Course, Reason
from extproc.routing.conversations import Answered, Conversations, Identity, identify
from extproc.routing.decision import Decision, decide
from extproc.routing.limits import principal_of
from extproc.routing.mutation import mutate
from extproc.routing.policy import Policy
from extproc.routing.sticky import Sticky, seal_of
from extproc.routing.store import MemoryStore
from extproc.settings import Price, Upgrades
from tests.routing.test_decision import FRONTIER, LARGE, POLICY, SMALL, clearly, policy, rule, signals

AGENTS = Path(__file__).parents[1] / "agents"
MESSAGES, RESPONSES, CHAT = "/v1/messages", "/v1/responses", "/v1/chat/completions"
KEY = "Bearer a"
STRIP = Sticky(on_switch="strip")
TOOLS: dict[str, Any] = {"tools": [{"type": "function", "name": "run"}]}


class Talk:
    """One principal's requests, decided one after the other by the same store. Time stands still."""

    def __init__(
        self, policy: Policy = POLICY, principal: str | None = KEY, store: MemoryStore | None = None
    ) -> None:
        self.policy, self.principal = policy, principal
        self.store = store or MemoryStore()
        self.conversations = Conversations(self.store, lambda: 1_000.0)
        self.key = "none"

    def send(self, path: str, body: dict[str, Any], cohort: str = "faq", headers: dict[str, str] | None = None,
             spent: bool = False, **more: Any) -> Decision:  # fmt: skip
        request = parse_request(path, msgspec.json.encode({"model": "auto"} | body))
        assert request is not None
        identity = identify(request, headers or {}, self.principal, self.policy.sticky.on_switch == "strip")
        self.key = identity.key
        continuation = asyncio.run(self.conversations.recall(request, identity))
        decision = decide(self.policy, signals(**more), clearly(cohort), {}, spent=spent, continuation=continuation)
        rank = self.policy.rank(decision.tier.name)
        stripped = decision.strip is not None and decision.strip.seal != seal_of(decision.tier)
        self.conversations.note(identity, continuation, self.policy.tiers, rank, 100, stripped)
        self.mutated = mutate(decision, request).body or b""
        return decision

    def answered(self, tier: str, response: str = "") -> None:
        """Envoy reports the tier that answered the last request, and the id of the response."""
        answer = Answered(principal_of(self.principal), self.key, tier, response)
        asyncio.run(self.conversations.answered(answer, self.policy.tiers))


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def thought(signature: str, text: str = "Done.") -> dict[str, Any]:
    thinking = {"type": "thinking", "thinking": "", "signature": signature}
    return {"role": "assistant", "content": [thinking, {"type": "text", "text": text}]}


def said(text: str = "Done.") -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def reasoned(encrypted: str) -> dict[str, Any]:
    return {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": encrypted}


def result(name: str = "c1") -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": name, "output": "a\nb\n"}


def outcome(decision: Decision) -> tuple[str, Reason, Course | None]:
    return decision.tier.name, decision.reason, decision.course


FIRST = {"messages": [user("Prove that 17 is prime.")]}


# Sealed state


def test_thinking_stays_with_the_tier_that_signed_it() -> None:
    talk = Talk()
    assert outcome(talk.send(MESSAGES, FIRST, "code")) == ("large", Reason.MATCHED, None)
    second = {"messages": [*FIRST["messages"], thought("EqQB"), user("Where is my parcel?")]}
    decision = talk.send(MESSAGES, second)
    assert outcome(decision) == ("large", Reason.BOUND, Course.KEPT_SEALED)
    assert decision.ladder == ()  # no other tier can read it


def test_encrypted_reasoning_stays_with_its_maker() -> None:
    talk = Talk()
    opening = user("Prove that 17 is prime.")
    talk.send(RESPONSES, {"store": False, "input": [opening]}, "legal")
    second = {"store": False, "input": [opening, reasoned("gAAAA"), said("It is."), user("Where is it?")]}
    assert outcome(talk.send(RESPONSES, second)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)


def test_a_response_id_goes_to_the_tier_that_made_it() -> None:
    """The request has neither the history nor an id of the conversation."""
    talk = Talk()
    talk.answered("frontier", "resp_1")
    follow_up = {"previous_response_id": "resp_1", "input": "thanks, and in one sentence?"}
    assert outcome(talk.send(RESPONSES, follow_up)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    assert outcome(Talk(store=talk.store, principal="Bearer b").send(RESPONSES, follow_up))[2] is Course.LOST


@pytest.mark.parametrize(
    "state",
    [
        {"previous_response_id": "resp_frontier_1", "input": "thanks"},
        {"conversation": "conv_1", "input": "thanks"},
        {"conversation": {"id": "conv_1"}, "input": "thanks"},
        {"input": [{"type": "item_reference", "id": "msg_1"}, user("thanks")]},
        {"input": [user("Prove it"), reasoned("gAAAA"), user("thanks")]},
        {"input": [user("Prove it"), {"type": "reasoning", "id": "rs_9", "summary": []}, user("thanks")]},
        {"input": [user("Prove it"), {"type": "compaction", "encrypted_content": "gB"}, user("thanks")]},
    ],
)
def test_state_of_an_unknown_tier_goes_to_the_default_tier_and_says_so(state: dict[str, Any]) -> None:
    assert outcome(Talk().send(RESPONSES, state)) == ("large", Reason.BOUND, Course.LOST)


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "thinking", "thinking": "", "signature": "EqQB"}, {"type": "text", "text": "Done."}],
        [{"type": "redacted_thinking", "data": "EmwK"}, {"type": "text", "text": "Done."}],
    ],
)
def test_every_kind_of_sealed_thinking_counts(content: list[dict[str, str]]) -> None:
    body = {"messages": [user("Prove it"), {"role": "assistant", "content": content}, user("thanks")]}
    assert outcome(Talk().send(MESSAGES, body)) == ("large", Reason.BOUND, Course.LOST)


@pytest.mark.parametrize("conversation", ["conv_1", {"id": "conv_1"}])
def test_a_conversation_that_an_upstream_keeps_stays_where_its_first_request_went(conversation: Any) -> None:
    """Its requests have nothing else in common: each has only the new turn."""
    talk = Talk()
    first = {"conversation": conversation, "input": "May we keep it?"}
    assert talk.send(RESPONSES, first, "legal").tier.name == "frontier"
    again = {"conversation": conversation, "input": "thanks"}
    assert outcome(talk.send(RESPONSES, again, "faq")) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    other = {"conversation": "conv_2", "input": "thanks"}
    assert outcome(talk.send(RESPONSES, other, "faq")) == ("large", Reason.BOUND, Course.LOST)


def test_a_thread_that_a_server_keeps_stays_with_its_maker() -> None:
    """Each request of a thread names the message before it, and has only the new turn."""
    talk = Talk()
    created = {"thread": {"type": "create"}, "messages": [user("May we keep it?")]}
    assert talk.send(MESSAGES, created, "legal").tier.name == "frontier"
    talk.answered("frontier", "msg_1")
    continued = {"type": "continue", "previous_message_id": "msg_1"}
    again = {"thread": continued, "messages": [user("thanks")]}
    assert outcome(talk.send(MESSAGES, again)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    strange = {"thread": continued | {"previous_message_id": "msg_2"}, "messages": [user("Where is it?")]}
    assert outcome(talk.send(MESSAGES, strange)) == ("large", Reason.BOUND, Course.LOST)


@pytest.mark.parametrize("container", ["c_1", {"id": "c_1", "skills": []}])
def test_a_container_stays_where_its_conversation_was(container: Any) -> None:
    talk = Talk()
    opening = user("May we keep it?")
    talk.send(MESSAGES, {"messages": [opening]}, "legal")
    second = {"container": container, "messages": [opening, said(), user("Where is my parcel?")]}
    assert outcome(talk.send(MESSAGES, second)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    other = {"container": container, "messages": [user("Where is my parcel?")]}
    assert outcome(talk.send(MESSAGES, other)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    skills: dict[str, Any] = {"container": {"skills": []}, "messages": [opening]}
    assert outcome(talk.send(MESSAGES, skills)) == ("small", Reason.MATCHED, None)


@pytest.mark.parametrize("seal", [{"signature": "AbCdEf"}, {"encrypted_content": "AbCdEf"}])
@pytest.mark.parametrize("role", ["assistant", "user"])
def test_a_compaction_block_is_sealed_and_never_removed(role: str, seal: dict[str, str]) -> None:
    """It stands for earlier turns, so `strip` does not take it out."""
    block = {"type": "compaction", "content": "They asked about a parcel."} | seal
    talk = Talk(policy(sticky=STRIP))
    body = {"messages": [{"role": role, "content": [block]}, user("Where is my parcel?")]}
    assert outcome(talk.send(MESSAGES, body)) == ("large", Reason.BOUND, Course.LOST)
    assert msgspec.json.decode(talk.mutated)["messages"] == body["messages"]


def test_the_fingerprint_of_a_program_is_sealed_and_never_removed() -> None:
    talk = Talk(policy(sticky=STRIP))
    opening = user("May we keep it?")
    talk.send(RESPONSES, {"input": [opening]}, "legal")
    program = {"type": "program", "call_id": "p1", "code": "1", "fingerprint": "AbCdEf"}
    output = {"type": "program_output", "call_id": "p1", "result": "1"}
    second = {"input": [opening, program, output, said(), user("Where is it?")]}
    assert outcome(talk.send(RESPONSES, second)) == ("frontier", Reason.BOUND, Course.KEPT_SEALED)
    assert msgspec.json.decode(talk.mutated)["input"] == second["input"]


def test_the_tier_that_answered_last_sums_a_conversation_up() -> None:
    """It signs the block, so it gets the rest of the conversation as well."""
    talk = Talk()
    opening = user("May we keep it?")
    talk.send(MESSAGES, {"messages": [opening]}, "legal")
    turns = [opening, said(), user("Where is it?"), said(), user("Thanks, and where is the other one?")]
    summing = {"compaction": {"type": "summarize"}, "messages": turns}
    assert outcome(talk.send(MESSAGES, summing)) == ("frontier", Reason.BOUND, Course.KEPT_TOOL_LOOP)
    assert outcome(talk.send(MESSAGES, {"messages": turns})) == ("small", Reason.MATCHED, Course.MOVED)


@pytest.mark.parametrize(
    "member",
    [
        {"extra_content": {"google": {"thought_signature": "AbCdEf"}}},
        {"reasoning_details": [{"type": "reasoning.text", "text": "Hm.", "signature": "AbCdEf"}]},
        {"reasoning_details": [{"type": "reasoning.encrypted", "data": "AbCdEf"}]},
        {"thinking_blocks": [{"type": "thinking", "thinking": "Hm.", "signature": "AbCdEf"}]},
    ],
)
def test_signed_reasoning_beside_a_chat_answer_counts(member: dict[str, Any]) -> None:
    body = {"messages": [user("Run it"), {"role": "assistant", "content": "Yes."} | member, user("thanks")]}
    assert outcome(Talk().send(CHAT, body)) == ("large", Reason.BOUND, Course.LOST)


def test_open_reasoning_beside_a_chat_answer_binds_nobody() -> None:
    details = [{"type": "reasoning.text", "text": "Hm.", "signature": None}]
    answer = {"role": "assistant", "content": "Yes.", "reasoning_content": "Hm.", "reasoning_details": details}
    assert outcome(Talk().send(CHAT, {"messages": [user("Run it"), answer, user("thanks")]}))[0] == "small"


def test_signatures_in_tool_calls_of_chat_count() -> None:
    google = {"google": {"thought_signature": "AbCdEf"}}
    call = {"id": "1", "type": "function", "function": {"name": "run", "arguments": "{}"}, "extra_content": google}
    body = {"messages": [user("Run it"), {"role": "assistant", "tool_calls": [call]}, user("thanks")]}
    assert outcome(Talk().send(CHAT, body)) == ("large", Reason.BOUND, Course.LOST)


def test_a_lost_conversation_goes_to_the_model_that_the_client_names() -> None:
    body = {"model": "frontier-1", "messages": [user("Prove it"), thought("EqQB"), user("thanks")]}
    assert outcome(Talk().send(MESSAGES, body)) == ("frontier", Reason.BOUND, Course.LOST)


def test_open_reasoning_and_unsigned_thinking_bind_nobody() -> None:
    open_reasoning = {"type": "reasoning", "id": "rs_1", "content": [{"type": "reasoning_text", "text": "Hm."}]}
    body = {"input": [user("Prove it"), open_reasoning, said(), user("thanks")]}
    assert outcome(Talk().send(RESPONSES, body)) == ("small", Reason.MATCHED, None)
    assert (
        outcome(Talk().send(MESSAGES, {"messages": [user("Prove it"), thought(""), user("thanks")]}))[0] == "small"
    )


def test_a_floor_moves_a_bound_conversation_up_and_a_cap_does_not_move_it_down() -> None:
    talk = Talk()
    talk.send(MESSAGES, FIRST, "code")
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    assert outcome(talk.send(MESSAGES, bound, "legal")) == ("frontier", Reason.TIER_FLOOR, Course.MOVED)
    assert outcome(talk.send(MESSAGES, bound, "faq")) == ("large", Reason.BOUND, Course.KEPT_SEALED)


def test_tiers_with_one_seal_read_each_others_state() -> None:
    tiers = (msgspec.structs.replace(SMALL, seal="ours"), msgspec.structs.replace(LARGE, seal="ours"), FRONTIER)
    talk = Talk(policy(tiers=tiers))
    talk.send(MESSAGES, FIRST, "code")
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    decision = talk.send(MESSAGES, bound, "faq")
    assert outcome(decision) == ("small", Reason.MATCHED, Course.MOVED)
    assert [rung.tier.name for rung in decision.ladder] == ["large"]


def test_a_tier_that_was_given_another_model_has_lost_its_state() -> None:
    talk = Talk()
    talk.send(MESSAGES, FIRST, "code")
    talk.policy = policy(tiers=(SMALL, msgspec.structs.replace(LARGE, model="qwen4-32b"), FRONTIER))
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    assert outcome(talk.send(MESSAGES, bound)) == ("large", Reason.BOUND, Course.LOST)


def test_the_maker_of_a_known_item_is_found_in_a_session_with_another_id() -> None:
    """A client resumes: the id is new, and the last answer that we saw left its signature."""
    talk = Talk()
    talk.send(MESSAGES, FIRST, "code", {"session-id": "one"})
    second = [*FIRST["messages"], thought("EqQB"), user("thanks")]
    talk.send(MESSAGES, {"messages": second}, "faq", {"session-id": "one"})
    resumed = {"messages": [*second, thought("FrRC"), user("and again")]}
    assert outcome(talk.send(MESSAGES, resumed, "faq", {"session-id": "two"}))[0] == "large"


def test_another_principal_reaches_no_conversation() -> None:
    talk = Talk()
    talk.send(MESSAGES, FIRST, "legal", {"session-id": "one"})
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    stranger = Talk(store=talk.store, principal="Bearer b")
    assert outcome(stranger.send(MESSAGES, bound, "faq", {"session-id": "one"}))[2] is Course.LOST


def test_a_background_job_is_asked_for_once() -> None:
    decision = Talk().send(RESPONSES, {"background": True, "input": "Where is my parcel?"})
    assert (decision.ladder, decision.judged) == ((), False)


def test_an_escalation_moves_the_conversation_to_the_tier_that_answered() -> None:
    talk = Talk()
    talk.send(MESSAGES, FIRST, "faq")
    talk.answered("large")
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    assert outcome(talk.send(MESSAGES, bound, "faq")) == ("large", Reason.BOUND, Course.KEPT_SEALED)


@pytest.mark.parametrize("tier", ["small", "gone"])
def test_a_report_of_the_expected_tier_or_an_unknown_one_changes_nothing(tier: str) -> None:
    talk = Talk()
    talk.send(MESSAGES, FIRST, "faq")
    talk.answered(tier)
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    assert outcome(talk.send(MESSAGES, bound, "code"))[0] == "small"


def test_a_damaged_report_is_ignored() -> None:
    assert Answered.read(b"p\nc\nsmall\nresp_1") == Answered("p", "c", "small", "resp_1")
    assert Answered.read(b"\xff\n") is None


# Stripping


def test_with_strip_a_conversation_moves_without_its_sealed_items() -> None:
    talk = Talk(policy(sticky=STRIP))
    talk.send(MESSAGES, FIRST, "code")
    second = [*FIRST["messages"], thought("EqQB", "One."), user("thanks")]
    decision = talk.send(MESSAGES, {"messages": second})
    assert outcome(decision) == ("small", Reason.MATCHED, Course.MOVED_STRIPPED)
    assert msgspec.json.decode(talk.mutated)["messages"] == [
        second[0],
        {"role": "assistant", "content": [{"type": "text", "text": "One."}]},
        second[2],
    ]


def test_items_from_before_a_move_are_removed_from_later_requests() -> None:
    talk = Talk(policy(sticky=STRIP))
    talk.send(MESSAGES, FIRST, "code")
    second = [*FIRST["messages"], thought("EqQB", "One."), user("thanks")]
    talk.send(MESSAGES, {"messages": second})
    third = [*second, thought("FrRC", "Two."), user("go on")]
    assert outcome(talk.send(MESSAGES, {"messages": third})) == ("small", Reason.MATCHED, Course.KEPT)
    sent = msgspec.json.decode(talk.mutated)["messages"]
    assert [len(turn["content"]) for turn in (sent[1], sent[3])] == [1, 2]
    assert outcome(talk.send(MESSAGES, {"messages": third}, "code"))[2] is Course.MOVED_STRIPPED
    assert b"signature" not in talk.mutated


def test_reasoning_items_are_removed_with_the_ids_that_belong_to_them() -> None:
    talk = Talk(policy(sticky=STRIP))
    opening = user("Prove that 17 is prime.")
    talk.send(RESPONSES, {"store": False, "input": [opening]}, "code")
    call = {"type": "function_call", "id": "fc_1", "call_id": "c1", "name": "run", "arguments": "{}"}
    answer = {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Two."}]}
    items = [opening, reasoned("gA"), call, result(), reasoned("gB"), answer, user("thanks")]
    talk.send(RESPONSES, {"store": False, "input": items})
    del call["id"]
    assert msgspec.json.decode(talk.mutated)["input"] == [opening, call, result(), answer, user("thanks")]


def test_an_id_binds_with_strip_too() -> None:
    talk = Talk(policy(sticky=STRIP))
    assert outcome(talk.send(RESPONSES, {"previous_response_id": "r", "input": "thanks"}))[1] is Reason.BOUND


def test_after_an_escalation_older_items_are_removed_for_the_tier_that_answered() -> None:
    talk = Talk(policy(sticky=STRIP))
    talk.send(MESSAGES, FIRST, "faq")
    second = [*FIRST["messages"], thought("EqQB", "One."), user("thanks")]
    decision = talk.send(MESSAGES, {"messages": second}, "faq")
    assert [rung.tier.name for rung in decision.ladder] == ["large"]
    talk.answered("large")
    talk.send(MESSAGES, {"messages": [*second, thought("FrRC", "Two."), user("go on")]}, "code")
    sent = msgspec.json.decode(talk.mutated)["messages"]
    assert [len(turn["content"]) for turn in (sent[1], sent[3])] == [1, 2]


# Tool loops


def test_a_tool_loop_stays_where_it_began() -> None:
    talk = Talk()
    talk.send(RESPONSES, TOOLS | {"input": [user("Count the files")]}, "code")
    call = {"type": "function_call", "call_id": "c1", "name": "run", "arguments": "{}"}
    loop = TOOLS | {"input": [user("Count the files"), call, result()]}
    assert outcome(talk.send(RESPONSES, loop)) == ("large", Reason.BOUND, Course.KEPT_TOOL_LOOP)
    assert outcome(talk.send(RESPONSES, loop, "code")) == ("large", Reason.MATCHED, Course.KEPT_TOOL_LOOP)


def test_between_turns_a_conversation_without_sealed_state_moves_freely() -> None:
    talk = Talk()
    talk.send(CHAT, FIRST, "code")
    second = {"messages": [*FIRST["messages"], said(), user("Where is my parcel?")]}
    assert outcome(talk.send(CHAT, second)) == ("small", Reason.MATCHED, Course.MOVED)


def test_a_need_and_a_floor_lift_a_tool_loop_and_a_cap_does_not_lower_it() -> None:
    talk = Talk(policy(rule("gdpr", {"turns_over": 5}, tier_floor="frontier")))
    first = {"messages": [user("Count the files")]}
    talk.send(CHAT, first, "code")
    loop = {"messages": [user("Count the files"), said(""), {"role": "tool", "content": "3"}]}
    assert outcome(talk.send(CHAT, loop, turns=9))[:2] == ("frontier", Reason.TIER_FLOOR)
    talk.send(CHAT, first, "code")
    assert outcome(talk.send(CHAT, loop, needs=frozenset({"vision"})))[:2] == ("frontier", Reason.CAPABILITY)


def test_a_side_request_of_a_session_does_not_move_its_tool_loop() -> None:
    """An agent asks another model for a title, with the same words and id but without tools."""
    talk, session = Talk(), {"x-claude-code-session-id": "one"}
    opening = {"messages": [user("Count the files")]}
    talk.send(MESSAGES, TOOLS | opening, "code", session)
    talk.send(MESSAGES, opening, "faq", session)
    call = {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "run", "input": {}}]}
    answer = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "3"}]}
    loop = TOOLS | {"messages": [*opening["messages"], call, answer]}
    assert outcome(talk.send(MESSAGES, loop, "faq", session))[0] == "large"


# Identity


def identity(
    path: str, body: dict[str, Any], headers: dict[str, str] | None = None, key: str | None = KEY
) -> Identity:
    request = parse_request(path, msgspec.json.encode({"model": "auto"} | body))
    assert request is not None
    return identify(request, headers or {}, key)


def codex(ask: str, **more: Any) -> dict[str, Any]:
    harness = [
        {
            "type": "input_text",
            "text": "# AGENTS.md instructions for /srv/app\n\n<INSTRUCTIONS>\nBrief.\n</INSTRUCTIONS>",
        },
        {"type": "input_text", "text": "<environment_context>\n  <cwd>/srv/app</cwd>\n</environment_context>"},
    ]
    return {"input": [{"role": "user", "content": harness}, {"role": "user", "content": ask}]} | more


def test_sessions_of_an_agent_differ_by_what_the_person_asks_first() -> None:
    """The text that the agent puts before it is the same in all of them."""
    asks = ("Count the files", "Fix the failing test", "Rename the module")
    assert len({identity(RESPONSES, codex(ask)).key for ask in asks}) == 3


@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        (RESPONSES, codex("Count the files"), {"session_id": "s1"}),
        (RESPONSES, codex("Count the files"), {"thread-id": "s1"}),
        (RESPONSES, codex("Count the files", prompt_cache_key="s1"), {}),
        (MESSAGES, FIRST | {"metadata": {"user_id": "user_ab_account_cd_session_0f9e8d7c-1"}}, {}),
        (MESSAGES, FIRST | {"metadata": {"user_id": '{"device_id":"d","session_id":"0f9e8d7c-1"}'}}, {}),
        (MESSAGES, FIRST, {"x-claude-code-session-id": "s1"}),
    ],
)
def test_an_id_of_the_client_tells_equal_openings_apart(
    path: str, body: dict[str, Any], headers: dict[str, str]
) -> None:
    named = identity(path, body, headers).key
    other = msgspec.json.decode(
        msgspec.json.encode(body).replace(b"s1", b"s2").replace(b"0f9e8d7c-1", b"0f9e8d7c-2")
    )
    assert named == identity(path, body, headers).key
    assert named != identity(path, other, {name: f"{value}2" for name, value in headers.items()}).key
    plain = {name: value for name, value in body.items() if name not in ("metadata", "prompt_cache_key")}
    assert named != identity(path, plain).key


def test_later_turns_are_of_the_same_session_and_find_the_first() -> None:
    later = {"messages": [*FIRST["messages"], said(), user("thanks")]}
    latest = {"messages": [*later["messages"], said("You are welcome."), user("bye")]}
    first, second, third = (identity(CHAT, body) for body in (FIRST, later, latest))
    assert first.session == second.session == third.session
    assert first.key in second.lookups and second.key == third.key


def test_after_the_first_answer_conversations_that_open_alike_are_apart() -> None:
    bodies = [{"messages": [*FIRST["messages"], said(text), user("thanks")]} for text in ("One.", "Two.")]
    assert len({identity(CHAT, body).key for body in bodies}) == 2
    call = {"type": "function_call", "name": "run", "arguments": "{}"}
    loops = [{"input": [user("Count"), call | {"call_id": name}, result(name)]} for name in ("c1", "c2")]
    assert len({identity(RESPONSES, body).key for body in loops}) == 2


def test_what_a_person_pastes_tells_conversations_apart() -> None:
    bodies = [{"messages": [user(f"Summarise this text:\n```\n{word * 300}\n```")]} for word in ("ab ", "cd ")]
    assert len({identity(CHAT, body).session for body in bodies}) == 2


def test_a_key_is_a_hash_that_needs_the_principal() -> None:
    keys = {identity(CHAT, FIRST, key=key).key for key in (KEY, "Bearer b", None)}
    assert len(keys) == 3 and all(len(key) == 16 for key in keys)
    odd = identity(CHAT, {"messages": [user("ü" * 9000)]}, {"session-id": "ü\udcff"}, "ü\udcff" * 1000)
    assert len(odd.key) == 16


@pytest.mark.parametrize("file", sorted(AGENTS.glob("*.json")), ids=lambda file: file.stem)
def test_the_requests_of_agents_have_an_identity(file: Path) -> None:
    case = msgspec.json.decode(file.read_bytes())
    body = case.get("body", case)
    path = next(p for p in (MESSAGES, RESPONSES, CHAT) if ("input" in body) == (p == RESPONSES))
    assert identity(path, body).key != identity(path, {"messages": [], "input": []}).key


# The price of a switch

CACHED = tuple(
    msgspec.structs.replace(tier, price=Price(tier.price.input, tier.price.output, tier.price.input / 10))
    for tier in (SMALL, LARGE, FRONTIER)
)
SECOND = {"messages": [*FIRST["messages"], said(), user("Where is my parcel?")]}


def test_a_conversation_stays_until_its_budget_pays_for_a_switch() -> None:
    talk = Talk(policy(tiers=CACHED, sticky=Sticky(switch_budget=0.1)))
    talk.send(CHAT, FIRST, "code")
    assert outcome(talk.send(CHAT, SECOND)) == ("large", Reason.BOUND, Course.KEPT_CACHE)
    assert outcome(talk.send(CHAT, SECOND, "code")) == ("large", Reason.MATCHED, Course.KEPT)
    assert outcome(talk.send(CHAT, SECOND, "legal")) == ("frontier", Reason.TIER_FLOOR, Course.MOVED)
    generous = Talk(policy(tiers=CACHED, sticky=Sticky(switch_budget=2)), store=talk.store)
    assert outcome(generous.send(CHAT, SECOND)) == ("small", Reason.MATCHED, Course.MOVED)


def test_a_limit_on_upgrades_is_stronger_than_a_warm_cache() -> None:
    upgrades = Upgrades(per_minute=1, burst=1)
    talk = Talk(policy(tiers=CACHED, sticky=Sticky(switch_budget=0.1), upgrades=upgrades))
    talk.send(CHAT, FIRST, "legal")
    decision = talk.send(CHAT, SECOND, "legal", spent=True)
    assert outcome(decision)[0] == "frontier"  # its floor holds
    lowered = policy(tiers=CACHED, sticky=talk.policy.sticky, upgrades=Upgrades(1, 1, lower_floors=True))
    assert outcome(Talk(lowered, store=talk.store).send(CHAT, SECOND, "legal", spent=True)) == (
        "large", Reason.UPGRADE_RATE, Course.MOVED,
    )  # fmt: skip


# Tiers that leave


def test_a_draining_tier_keeps_its_conversations_and_one_that_is_out_loses_them() -> None:
    talk = Talk()
    talk.send(MESSAGES, FIRST, "code")
    bound = {"messages": [*FIRST["messages"], thought("EqQB"), user("thanks")]}
    draining = msgspec.structs.replace(LARGE, state="drain")
    talk.policy = policy(tiers=(SMALL, draining, FRONTIER), default_tier="small")
    assert outcome(talk.send(MESSAGES, bound)) == ("large", Reason.BOUND, Course.KEPT_SEALED)
    talk.policy = policy(tiers=(SMALL, msgspec.structs.replace(LARGE, state="out"), FRONTIER), default_tier="small")
    assert outcome(talk.send(MESSAGES, bound)) == ("small", Reason.BOUND, Course.LOST)


def test_a_lost_conversation_goes_to_a_tier_that_has_its_api() -> None:
    tiers = (SMALL, msgspec.structs.replace(LARGE, apis=frozenset({"chat"})), FRONTIER)
    follow_up = {"previous_response_id": "resp_1", "input": "thanks"}
    decision = Talk(policy(tiers=tiers)).send(RESPONSES, follow_up, api="responses")
    assert outcome(decision) == ("frontier", Reason.CAPABILITY, Course.LOST)
