"""Reading requests: bodies of four APIs give one `Request`, and unreadable bodies give RequestError."""

import json
from typing import Any

import pytest

from extproc.api.parts import MAX_ITEMS
from extproc.api.reasoning import ReasoningChoice
from extproc.api.request import Request, RequestError, Turn, parse_request
from extproc.routing.signals import Signals, read_signals

CHAT, COMPLETIONS, RESPONSES, MESSAGES = (
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
)
USER = {"role": "user", "content": "Translate this letter into French"}
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "A" * 9_000}}


def parsed(path: str, **body: Any) -> Request:
    request = parse_request(path, json.dumps(body).encode())
    assert request is not None
    return request


def chat(**more: Any) -> Request:
    return parsed(CHAT, **{"model": "auto", "messages": [USER], **more})


def messages(**more: Any) -> Request:
    return parsed(MESSAGES, **{"model": "auto", "max_tokens": 4096, "messages": [USER], **more})


def test_a_plain_chat_request_is_read_whole():
    """The value contains everything that routing may use, and no guesses."""
    body = b'{"model": "auto", "messages": [{"role": "user", "content": "Fix my loop"}], "stream": true}'
    assert parse_request(CHAT, body) == Request(
        api="chat",
        body=body,
        model="auto",
        turns=(Turn("user", ("Fix my loop",)),),
        needs=frozenset(),
        media_bytes=0,
        strict_output=False,
        stream=True,
        max_output_tokens=None,
        cap_field=None,
        logprobs=False,
        reasoning=None,
        thinking_bars=frozenset(),
        context_management=b"",
    )


@pytest.mark.parametrize(
    "path", ["", "/", "/v1/models", "/v1/embeddings", "/v1/chat/completions/x", "/v1/messages/count_tokens"]
)
def test_other_paths_are_none_of_ours(path):
    """A path that is not one of the four APIs is not routed, with any body."""
    assert parse_request(path, b"not JSON") is None


def test_a_query_string_changes_nothing():
    """Anthropic's clients add ?beta=true to the path."""
    assert parse_request(f"{MESSAGES}?beta=true", b"{}") == parse_request(MESSAGES, b"{}")


# Turns


def test_chat_turns_keep_their_roles_and_texts():
    """Content may be a string or an array. The output of a tool is not text of a turn."""
    request = chat(
        messages=[
            {"role": "system", "content": "Be brief"},
            {
                "role": "user",
                "content": [{"type": "text", "text": "Look"}, PICTURE, {"type": "text", "text": "here"}],
            },
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1", "function": {"name": "f"}}]},
            {"role": "tool", "tool_call_id": "1", "content": "42 rows"},
            {"role": "user", "content": ""},
        ]
    )
    assert request.turns == (
        Turn("system", ("Be brief",)),
        Turn("user", ("Look", "here")),
        Turn("assistant"),
        Turn("tool", tool_result=True),
        Turn("user"),
    )


def test_completions_turns_are_the_prompts():
    """A prompt is a string or a list. All prompts of a list are answered, so they are one ask.

    A list of token numbers has no text.
    """
    assert parsed(COMPLETIONS, prompt="Once upon").turns == (Turn("user", ("Once upon",)),)
    assert parsed(COMPLETIONS, prompt=["One", "Two"]).turns == (Turn("user", ("One", "Two")),)
    assert parsed(COMPLETIONS, prompt=[15, 27]).turns == ()
    assert parsed(COMPLETIONS).turns == ()


def test_responses_turns_are_instructions_and_input():
    """The input is a string or a list of items. Calls and reasoning are not turns."""
    text = parsed(RESPONSES, instructions="Be brief", input="Add these up")
    assert text.turns == (Turn("system", ("Be brief",)), Turn("user", ("Add these up",)))
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Add these up"}]},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "sum", "arguments": "{}", "call_id": "1"},
        {"type": "function_call_output", "call_id": "1", "output": "7"},
        {"type": "item_reference", "id": "msg_1"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "It is 7"}]},
    ]
    assert parsed(RESPONSES, input=items).turns == (
        Turn("user", ("Add these up",)),
        Turn("", (), tool_result=True),
        Turn("assistant", ("It is 7",)),
    )


def test_anthropic_turns_have_the_system_prompt_first():
    """A system prompt is a string or parts. A tool result is a user turn, and its output is not text."""
    result = {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "42 rows"}]}
    request = messages(
        system=[{"type": "text", "text": "Be brief", "cache_control": {"type": "ephemeral"}}],
        messages=[USER, {"role": "user", "content": [result, {"type": "text", "text": "And now?"}]}],
    )
    assert request.turns == (
        Turn("system", ("Be brief",)),
        Turn("user", (USER["content"],)),
        Turn("user", ("And now?",), tool_result=True),
    )


# Capabilities that a tier needs


@pytest.mark.parametrize(
    ("path", "body", "needs"),
    [
        (CHAT, {"messages": [USER]}, set()),
        (CHAT, {"messages": [USER], "tools": []}, set()),
        (CHAT, {"messages": [USER], "tools": [{"type": "function"}]}, {"tools"}),
        (CHAT, {"messages": [USER], "functions": [{"name": "f"}]}, {"tools"}),
        (CHAT, {"messages": [{"role": "user", "content": [PICTURE]}]}, {"vision"}),
        (
            CHAT,
            {
                "messages": [
                    {"role": "user", "content": [{"type": "input_audio", "input_audio": {"data": "QUJD"}}]},
                    {"role": "user", "content": [PICTURE]},
                ]
            },
            {"audio", "vision"},
        ),
        (
            RESPONSES,
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "data:,"}]}]},
            {"vision"},
        ),
        (
            MESSAGES,
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "base64"}}]}]},
            {"vision"},
        ),
    ],
)
def test_needs_are_read_from_what_is_there(path, body, needs):
    """A tier needs the capabilities for declared tools and for media anywhere in the conversation."""
    assert parsed(path, **body).needs == needs


# Tools of every type that the providers define, and the needs for them.
HOSTED_TOOLS = {
    RESPONSES: {
        "web_search": ["web_search", "web_search_2025_08_26", "web_search_preview_2025_03_11"],
        "computer": ["computer", "computer_use_preview"],
        **{
            name: [name]
            for name in (
                "file_search", "code_interpreter", "image_generation", "mcp", "tool_search", "shell", "local_shell",
                "apply_patch", "namespace", "programmatic_tool_calling",
            )
        },
    },
    MESSAGES: {
        "web_search": ["web_search_20250305", "web_search_20260209", "web_search_20260318"],
        "web_fetch": ["web_fetch_20250910", "web_fetch_20260318"],
        "code_execution": ["code_execution_20250825", "code_execution_20260521"],
        "tool_search": ["tool_search_tool_regex_20251119", "tool_search_tool_regex", "tool_search_tool_bm25"],
        "computer": ["computer_20241022", "computer_20251124"],
        "mcp": ["mcp_toolset"],
        "bash": ["bash_20250124"],
        "text_editor": ["text_editor_20250728"],
        "memory": ["memory_20250818"],
        "advisor": ["advisor_20260301"],
        "computer_toolset": ["computer_toolset_20260801"],
        "browser_toolset": ["browser_toolset_20260801"],
    },
    CHAT: {
        "web_search": ["openrouter:web_search", "web_search"],
        "browser_search": ["browser_search"],
        "other": ["x/y", "w" * 90],
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "name"),
    [(path, kind, name) for path, names in HOSTED_TOOLS.items() for name, kinds in names.items() for kind in kinds],
)
def test_a_tool_that_the_provider_defines_is_a_need_by_its_name(path, kind, name):
    """One tool has one name in all its versions and types."""
    request = parsed(path, model="auto", tools=[{"type": "function", "name": "f"}, {"type": kind, "name": "n"}])
    assert request.needs == {"tools", f"hosted:{name}"}


@pytest.mark.parametrize(
    ("body", "needs"),
    [
        ({"tools": [{"google_search": {}}, {"urlContext": {}}]}, {"hosted:google_search", "hosted:url_context"}),
        ({"tools": [{"codeExecution": {}}, {"googleMaps": {}}]}, {"hosted:code_execution", "hosted:google_maps"}),
        ({"tools": [{"fileSearch": {}}, {"computer_use": {}}]}, {"hosted:file_search", "hosted:computer"}),
        ({"tools": [{"function": {"name": "google_search"}}, {"name": "f", "input_schema": {}}]}, set()),
        ({"tools": [{"functionDeclarations": [{"name": "f"}]}, {"toolSpec": {"name": "f"}}]}, set()),
        ({"tools": [{"enterpriseWebSearch": {}}]}, {"hosted:other"}),
        ({"tools": [{}]}, {"hosted:other"}),
        ({"web_search_options": {}}, {"hosted:web_search"}),
        ({"search_parameters": {"mode": "auto"}}, {"hosted:web_search"}),
        ({"search_parameters": {"mode": "off"}}, set()),
        ({"enable_search": True}, {"hosted:web_search"}),
        ({"enable_search": False, "search_parameters": None, "data_sources": []}, set()),
        ({"plugins": [{"id": "web", "max_results": 3}, {"id": "file-parser"}]}, {"hosted:web_search"}),
        ({"plugins": [{"id": "file-parser"}]}, set()),
        ({"data_sources": [{"type": "azure_search"}]}, {"hosted:data_sources"}),
    ],
)
def test_a_tool_without_a_type_is_known_by_its_member(body, needs):
    """Gemini's tools have the name of a member, in two spellings. Some providers search if a member says so."""
    assert chat(messages=[USER], **body).needs - {"tools"} == needs


@pytest.mark.parametrize(
    ("blocks", "needs"),
    [
        ([{"type": "server_tool_use", "id": "s", "name": "web_search", "input": {}}], set()),
        (
            [{"type": "web_search_tool_result", "content": [{"type": "web_search_result", "url": "https://x"}]}],
            {"hosted:web_search"},
        ),
        (
            [{"type": "bash_code_execution_tool_result", "content": {
                "type": "bash_code_execution_result", "content": [{"type": "bash_code_execution_output"}]}}],
            {"hosted:code_execution"},
        ),
        ([{"type": "web_fetch_tool_result", "content": {"type": "web_fetch_error"}}], {"hosted:web_fetch"}),
        ([{"type": "mcp_tool_use", "id": "m"}, {"type": "mcp_tool_result", "content": []}], {"hosted:mcp"}),
        ([{"type": "tool_use", "id": "t", "name": "f", "input": {}}], set()),
    ],
)  # fmt: skip
def test_the_result_of_a_hosted_tool_needs_a_tier_that_has_the_tool(blocks, needs):
    """Other tiers cannot read it. What is in it is not a part of an unknown type, which only the last tier gets."""
    turns = [USER, {"role": "assistant", "content": [*blocks, {"type": "text", "text": "Ici"}]}, USER]
    assert messages(messages=turns).needs == needs


@pytest.mark.parametrize(
    ("item", "needs"),
    [
        ({"type": "web_search_call", "id": "ws_1"}, {"hosted:web_search"}),
        ({"type": "file_search_call", "id": "fs_1"}, {"hosted:file_search"}),
        ({"type": "code_interpreter_call", "id": "ci_1"}, {"hosted:code_interpreter"}),
        ({"type": "mcp_list_tools", "tools": [{"name": "a", "input_schema": {}}]}, {"hosted:mcp", "tools"}),
        ({"type": "mcp_approval_response", "approve": True}, {"hosted:mcp"}),
        ({"type": "computer_call_output", "output": {"type": "input_image"}}, {"hosted:computer", "vision"}),
        ({"type": "program", "code": "1"}, {"hosted:programmatic_tool_calling"}),
        ({"type": "program_output", "result": "1"}, {"hosted:programmatic_tool_calling"}),
        ({"type": "local_shell_call_output", "output": "a"}, {"hosted:local_shell"}),
        ({"type": "apply_patch_call", "operation": {}}, {"hosted:apply_patch"}),
        ({"type": "tool_search_output", "tools": [{"type": "namespace"}]},
         {"hosted:tool_search", "hosted:namespace", "tools"}),
        ({"type": "additional_tools", "role": "developer", "tools": [{"type": "function"}, {"type": "web_search"}]},
         {"hosted:tool_changes", "hosted:web_search", "tools", "mid_system"}),
        ({"type": "configuration_update", "reasoning": {"effort": "high"}}, {"hosted:configuration_update"}),
        ({"type": "compaction_trigger"}, {"hosted:compaction"}),
        ({"type": "x_search_call", "id": "xs_1"}, {"hosted:x_search"}),
        ({"type": "wasm_call_output", "output": "a"}, {"hosted:wasm"}),
        ({"type": "openrouter:datetime", "datetime": "now"}, {"hosted:datetime"}),
        ({"type": "X y_call"}, {"unknown part"}),
        ({"type": "function_call", "name": "f", "arguments": "{}"}, set()),
        ({"type": "custom_tool_call_output", "output": "a"}, set()),
        ({"type": "input_text", "text": "Hi"}, set()),
    ],
)  # fmt: skip
def test_an_item_of_a_hosted_tool_needs_a_tier_that_has_the_tool(item, needs):
    """Also where the tool is no longer in the list of tools. A tool that an item adds is a need, too."""
    assert parsed(RESPONSES, input=[USER, item, USER]).needs == needs


@pytest.mark.parametrize(
    ("block", "needs"),
    [
        ({"type": "tool_addition", "tool": {"type": "tool_reference"}}, {"hosted:tool_changes", "tools"}),
        ({"type": "tool_addition", "tool": {"definition": {"type": "web_fetch_20260318"}}},
         {"hosted:tool_changes", "hosted:web_fetch", "tools"}),
        ({"type": "tool_addition", "tool": 5}, {"hosted:tool_changes", "hosted:other", "tools"}),
        ({"type": "tool_removal", "tool": {"type": "tool_reference"}}, {"hosted:tool_changes", "tools"}),
        ({"type": "mcp_tool_listing", "mcp_server_name": "m", "tools": []}, {"hosted:mcp"}),
        ({"type": "fallback", "from": {"model": "a"}, "to": {"model": "b"}}, {"hosted:fallback"}),
    ],
)  # fmt: skip
def test_a_block_about_tools_or_models_has_a_name_that_a_policy_can_list(block, needs):
    """A part of an unknown type goes to the last tier, also if a policy lists its name."""
    turns = [USER, {"role": "assistant", "content": [block, {"type": "text", "text": "Ici"}]}, USER]
    assert messages(messages=turns).needs == needs


@pytest.mark.parametrize(
    ("path", "body", "needs"),
    [
        (MESSAGES, {"thread": {"type": "create"}}, {"hosted:thread"}),
        (MESSAGES, {"thread": None, "compaction": None}, set()),
        (MESSAGES, {"compaction": {"type": "summarize"}}, {"hosted:compaction"}),
        (CHAT, {"thread": {"type": "create"}, "compaction": {}}, set()),
        (CHAT, {"extra_body": {"google": {"cached_content": "cachedContents/1"}}}, {"hosted:cached_content"}),
    ],
)
def test_state_that_a_server_keeps_is_a_need(path, body, needs):
    """A server that does not know the member would answer without the state."""
    assert parsed(path, messages=[USER], **body).needs == needs


def test_a_picture_that_was_made_is_not_text():
    """Its base64 would count as hundreds of thousands of tokens."""
    made = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "A" * 1_000_000}
    request = parsed(RESPONSES, input=[USER, made, USER])
    assert request.needs == {"hosted:image_generation", "vision"}
    assert request.media_bytes == 1_000_002


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"response_format": {"type": "json_schema", "json_schema": {}}}),
        (CHAT, {"response_format": {"type": "json_object"}}),
        (RESPONSES, {"text": {"format": {"type": "json_schema", "name": "x", "schema": {}}}}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema", "schema": {}}}}),
        (MESSAGES, {"output_format": {"type": "json_schema", "schema": {}}}),
    ],
)
def test_strict_output_is_seen_in_every_dialect(path, body):
    """Each API has another member that asks for JSON."""
    assert parsed(path, **body).strict_output


def test_text_output_is_not_strict():
    """A request that asks for text, or for no format, does not ask for JSON."""
    assert not chat(response_format={"type": "text"}).strict_output
    assert not parsed(RESPONSES, text={"format": {"type": "text"}}).strict_output
    assert not parsed(RESPONSES, text={"verbosity": "low"}).strict_output


# Choices of the client


@pytest.mark.parametrize(
    ("path", "body", "cap"),
    [
        (CHAT, {}, (None, None)),
        (CHAT, {"max_tokens": None}, (None, None)),
        (CHAT, {"max_tokens": 5}, (5, "max_tokens")),
        (CHAT, {"max_completion_tokens": 7}, (7, "max_completion_tokens")),
        (CHAT, {"max_tokens": 5, "max_completion_tokens": 7}, (7, "max_completion_tokens")),
        (CHAT, {"max_tokens": 0}, (0, "max_tokens")),
        (CHAT, {"max_tokens": -1}, (None, "max_tokens")),
        (COMPLETIONS, {"max_tokens": 5}, (5, "max_tokens")),
        (MESSAGES, {"max_tokens": 5}, (5, "max_tokens")),
        (RESPONSES, {"max_output_tokens": 9}, (9, "max_output_tokens")),
        (RESPONSES, {"max_tokens": 9}, (None, None)),
    ],
)
def test_the_clients_cap_is_read_from_its_apis_field(path, body, cap):
    """The limit, and the member that sets it."""
    request = parsed(path, **body)
    assert (request.max_output_tokens, request.cap_field) == cap


GOOGLE = "extra_body.google.thinking_config"


@pytest.mark.parametrize(
    ("path", "body", "on", "level", "budget", "members"),
    [
        (CHAT, {"reasoning_effort": "high"}, True, "high", None, {"reasoning_effort": "high"}),
        (CHAT, {"reasoning_effort": "none"}, False, "none", None, {"reasoning_effort": "none"}),
        (CHAT, {"reasoning_effort": "Minimal"}, False, "minimal", None, {"reasoning_effort": "minimal"}),
        (CHAT, {"reasoning_effort": "ultra"}, True, None, None, {"reasoning_effort": "ultra"}),
        (CHAT, {"thinking": True}, True, None, None, {"thinking": True}),
        (CHAT, {"reasoning": {"enabled": False}}, False, None, None, {"reasoning.enabled": False}),
        (CHAT, {"reasoning": {"enabled": True}}, True, None, None, {"reasoning.enabled": True}),
        (CHAT, {"reasoning": {"max_tokens": 3000}}, True, None, 3000, {"reasoning.max_tokens": 3000}),
        (CHAT, {"reasoning": {"max_tokens": 0}}, False, None, None, {"reasoning.max_tokens": 0}),
        (CHAT, {"think": False}, False, None, None, {"think": False}),
        (CHAT, {"think": "High"}, True, "high", None, {"think": "high"}),
        (CHAT, {"enable_thinking": False}, False, None, None, {"enable_thinking": False}),
        (
            CHAT, {"enable_thinking": True, "thinking_budget": 900}, True, None, 900,
            {"enable_thinking": True, "thinking_budget": 900},
        ),
        (
            CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, False, None, None,
            {"chat_template_kwargs.enable_thinking": False},
        ),
        (
            CHAT, {"chat_template_kwargs": {"thinking": True}}, True, None, None,
            {"chat_template_kwargs.thinking": True},
        ),
        (
            CHAT, {"extra_body": {"google": {"thinking_config": {"thinking_budget": 0}}}}, False, None, None,
            {f"{GOOGLE}.thinking_budget": 0},
        ),
        (
            CHAT, {"extra_body": {"google": {"thinking_config": {"thinking_budget": -1}}}}, True, None, None,
            {f"{GOOGLE}.thinking_budget": -1},
        ),
        (
            CHAT, {"extra_body": {"google": {"thinking_config": {"thinking_level": "LOW"}}}}, True, "low", None,
            {f"{GOOGLE}.thinking_level": "low"},
        ),
        (CHAT, {"output_config": {"effort": "max"}}, True, "max", None, {"output_config.effort": "max"}),
        (
            CHAT, {"reasoning_effort": "high", "chat_template_kwargs": {"enable_thinking": False}},
            False, "high", None,
            {"reasoning_effort": "high", "chat_template_kwargs.enable_thinking": False},
        ),
        (
            RESPONSES, {"reasoning": {"effort": "low", "summary": "auto"}}, True, "low", None,
            {"reasoning.effort": "low"},
        ),
        (
            MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 2000}}, True, None, 2000,
            {"thinking": "enabled"},
        ),
        (MESSAGES, {"thinking": {"type": "adaptive"}}, True, None, None, {"thinking": "adaptive"}),
        (MESSAGES, {"thinking": {"type": "disabled"}}, False, None, None, {"thinking": "disabled"}),
        (MESSAGES, {"thinking": {"type": "between_tools"}}, False, None, None, {"thinking": "between_tools"}),
        (MESSAGES, {"output_config": {"effort": "low"}}, None, "low", None, {"output_config.effort": "low"}),
        (
            MESSAGES, {"thinking": {"type": "disabled"}, "output_config": {"effort": "high"}}, False, "high", None,
            {"thinking": "disabled", "output_config.effort": "high"},
        ),
    ],
)  # fmt: skip
def test_the_clients_choice_of_reasoning_is_read_in_every_dialect(path, body, on, level, budget, members):
    """Off, on, an effort or a budget, and the members that say so. Off wins."""
    assert parsed(path, **body).reasoning == ReasoningChoice(on, level, budget, members)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {}),
        (CHAT, {"reasoning_effort": None, "chat_template_kwargs": None}),
        (CHAT, {"chat_template_kwargs": {"custom": 1}}),
        (CHAT, {"extra_body": {"google": {"thinking_config": {"include_thoughts": True}}}}),
        (RESPONSES, {"reasoning": {"summary": "auto"}}),
        (RESPONSES, {"reasoning": None}),
        (MESSAGES, {"output_config": {"format": {"type": "json_schema"}}}),
    ],
)
def test_a_request_may_make_no_choice(path, body):
    """The same members without a choice."""
    assert parsed(path, **body).reasoning is None


ASSISTANT = {"role": "assistant", "content": "Cher"}
RESULT = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "1"}]}


@pytest.mark.parametrize(
    ("body", "bars"),
    [
        ({}, set()),
        ({"temperature": 1}, set()),
        ({"temperature": 1.0, "top_p": 0.95}, set()),
        ({"temperature": 0}, {"sampling"}),
        ({"temperature": 0.7}, {"sampling"}),
        ({"top_k": 5}, {"sampling"}),
        ({"top_p": 0.5}, {"sampling"}),
        ({"tool_choice": {"type": "auto"}}, set()),
        ({"tool_choice": {"type": "any"}}, {"tool_choice"}),
        ({"tool_choice": {"type": "tool", "name": "f"}, "top_k": 5}, {"tool_choice", "sampling"}),
        ({"messages": [USER, ASSISTANT]}, {"prefill"}),
        ({"messages": [USER, ASSISTANT, USER]}, set()),
        ({"messages": [USER, RESULT]}, {"loop"}),
    ],
)
def test_what_anthropic_may_refuse_beside_thinking_is_named(body, bars):
    """Sampling changes, a forced tool, a prefill or a tool loop."""
    assert messages(**body).thinking_bars == bars


# Odd members


@pytest.mark.parametrize(
    ("path", "odd"),
    [
        (CHAT, {"temperature": "0.2"}),
        (CHAT, {"temperature": "warm"}),
        (CHAT, {"top_p": [1]}),
        (CHAT, {"top_k": "5"}),
        (CHAT, {"tools": {}}),
        (CHAT, {"functions": None}),
        (CHAT, {"tool_choice": 5}),
        (CHAT, {"response_format": "json"}),
        (CHAT, {"text": "x", "reasoning": "high", "thinking": "hard"}),
        (CHAT, {"chat_template_kwargs": ["x"], "extra_body": 5, "enable_thinking": "?"}),
        (CHAT, {"include": {"a": 1}, "logprobs": "?"}),
        (CHAT, {"prompt": {}, "input": 5, "system": 7}),
        (CHAT, {"max_tokens": "many", "max_completion_tokens": 1.5}),
        (CHAT, {"stream": "maybe"}),
        (RESPONSES, {"prompt": {"id": "pmpt_1", "version": "2", "variables": {"city": "Oslo"}}}),
        (RESPONSES, {"prompt": {}}),
        (RESPONSES, {"prompt": {"variables": [5]}, "text": []}),
        (RESPONSES, {"instructions": []}),
        (RESPONSES, {"instructions": 5, "messages": "x"}),
        (MESSAGES, {"thinking": [], "output_config": "x"}),
    ],
)
def test_a_member_that_cannot_be_read_counts_as_absent(path, odd):
    """The person's words are read, and nothing else changes."""
    usual = {"model": "auto", "input" if path == RESPONSES else "messages": [USER]}
    plain, request = parsed(path, **usual), parsed(path, **usual, **odd)
    assert (request.model, request.turns, request.needs) == ("auto", plain.turns, plain.needs)
    assert (request.max_output_tokens, request.cap_field) == (None, None)
    assert (request.reasoning, request.stream, request.strict_output) == (None, False, False)


@pytest.mark.parametrize(
    ("odd", "field", "value"),
    [
        ({"max_tokens": 1024.0}, "max_output_tokens", 1024),
        ({"max_tokens": "1024"}, "max_output_tokens", 1024),
        ({"stream": "true"}, "stream", True),
        ({"stream": "yes"}, "stream", True),
        ({"stream": 1}, "stream", True),
        ({"stream": "off"}, "stream", False),
        (
            {"thinking": {"type": "enabled", "budget_tokens": "2000"}},
            "reasoning",
            ReasoningChoice(True, budget_tokens=2000, members={"thinking": "enabled"}),
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": "true"}},
            "reasoning",
            ReasoningChoice(True, members={"chat_template_kwargs.enable_thinking": True}),
        ),
        (
            {"chat_template_kwargs": {"enable_thinking": "False", "x": [1]}},
            "reasoning",
            ReasoningChoice(False, members={"chat_template_kwargs.enable_thinking": False}),
        ),
        ({"temperature": "0.2"}, "thinking_bars", {"sampling"}),
        ({"temperature": "1"}, "thinking_bars", set()),
        ({"include": ["message.output_text.logprobs", 5]}, "model", "auto"),
    ],
)
def test_a_value_that_spells_its_type_is_read(odd, field, value):
    """Clients send numbers and booleans as texts, and servers accept them."""
    assert getattr(chat(**odd), field) == value


@pytest.mark.parametrize(
    "content",
    [
        ["Translate this letter into French"],
        [{"type": "text", "text": "Translate this letter into French"}],
        {"type": "text", "text": "Translate this letter into French"},
        {"text": "Translate this letter into French"},
        [5, None, {"type": 5, "text": "Translate this letter into French"}],
        [{"type": "text", "text": 5}, "Translate this letter into French", []],
        [{"type": "text", "content": "Translate this letter into French"}],
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_a_content_of_any_shape_is_read(path, content):
    """A text, a part, or a list with texts, parts and what is neither."""
    member = "input" if path == RESPONSES else "messages"
    request = parsed(path, model="auto", **{member: [{"role": "user", "content": content}]})
    assert request.turns == (Turn("user", ("Translate this letter into French",)),)


@pytest.mark.parametrize(
    "items",
    [
        ["Translate this letter into French"],
        [{"role": "msg", "content": "Translate this letter into French"}],
        [{"role": "ctx", "content": ["Translate this letter into French"]}],
        [{"role": "Human", "content": "Translate this letter into French"}],
        [{"type": "message", "content": "Translate this letter into French"}],
        [5, {"role": "user", "content": "Translate this letter into French", "type": ["x"]}],
        [{"role": 5, "content": "Other"}, {"role": "user", "content": "Translate this letter into French"}],
    ],
)
@pytest.mark.parametrize("path", [CHAT, MESSAGES, RESPONSES])
def test_messages_of_any_shape_are_read(path, items):
    """A text is a message of the user. Any other item is skipped."""
    request = parsed(path, model="auto", **{"input" if path == RESPONSES else "messages": items})
    assert [turn for turn in request.turns if turn.role == "user"] == [
        Turn("user", ("Translate this letter into French",))
    ]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (CHAT, {"messages": "Translate this letter"}),
        (CHAT, {"messages": {"role": "user", "content": "Translate this letter"}}),
        (CHAT, {"messages": [{"content": "Translate this letter"}]}),
        (
            CHAT,
            {
                "messages": [
                    {"role": "assistant", "content": "Hi"},
                    {"role": None, "content": "Translate this letter"},
                ]
            },
        ),
        (CHAT, {"messages": [{"role": "user", "text": "Translate this letter"}]}),
        (
            CHAT,
            {"messages": [{"type": "human", "content": "Translate this letter"}, {"type": "ai", "content": "Hi"}]},
        ),
        (CHAT, {"input": [{"role": "user", "content": [{"type": "input_text", "text": "Translate this letter"}]}]}),
        (CHAT, {"prompt": "Translate this letter"}),
        (MESSAGES, {"input": "Translate this letter"}),
        (RESPONSES, {"input": [{"type": "input_text", "text": "Translate this letter"}]}),
        (RESPONSES, {"messages": [{"role": "user", "content": "Translate this letter"}]}),
        (COMPLETIONS, {"messages": [{"role": "user", "content": "Translate this letter"}]}),
    ],
)
def test_a_persons_text_is_read_in_the_form_of_another_api(path, body):
    """Floors hold for it, although most upstreams refuse this form."""
    asked = [turn for turn in parsed(path, model="auto", **body).turns if turn.role == "user"]
    assert asked == [Turn("user", ("Translate this letter",))]


@pytest.mark.parametrize("role", ["ipython", "observation", "tool_response", "Tool_Result", "ToolMessage"])
def test_the_output_of_a_tool_is_no_text_of_a_person(role):
    """The templates of open models have their own names for the role."""
    assert chat(messages=[USER, {"role": role, "content": "Prove it"}]).turns[1] == Turn("tool", (), True)


@pytest.mark.parametrize("role", ["AI", "bot", "model", "CHATBOT", "gpt", "AIMessage"])
def test_the_model_has_several_names(role):
    assert chat(messages=[USER, {"role": role, "content": "Yes"}]).turns[1] == Turn("assistant", ("Yes",))


def test_items_of_unknown_types_are_skipped():
    """They are not turns. Instructions in any shape count as system text, and an unknown role is a person's."""
    items = [{"type": "web_search_call", "id": "1"}, {"type": "x_new"}, {"role": "critic", "content": "No."}, USER]
    request = parsed(RESPONSES, instructions=["Be brief", {"role": "user", "content": "Hi"}], input=items)
    assert request.turns == (
        Turn("system", ("Be brief",)),
        Turn("system", ("Hi",)),
        Turn("user", ("No.",)),
        Turn("user", (USER["content"],)),
    )


@pytest.mark.parametrize("odd", [{"temperature": "0"}, {"top_p": [1]}, {"messages": [5, {"role": []}]}])
def test_an_odd_member_drops_no_need(odd):
    """The needs of the request are read beside the member that cannot be read."""
    more = odd.pop("messages", [])
    asked = [*more, {"role": "user", "content": [PICTURE, "Look"]}]
    assert chat(messages=asked, tools=[{"type": "function"}], **odd).needs == {"vision", "tools"}


@pytest.mark.parametrize(
    ("path", "body", "needs"),
    [
        (CHAT, {"tools": "web"}, {"tools"}),
        (CHAT, {"tools": {"name": "f"}}, {"tools"}),
        (CHAT, {"tools": [5]}, set()),
        (CHAT, {"tools": 0.5}, {"tools"}),
        (CHAT, {"modalities": "audio"}, {"unknown part"}),
        (CHAT, {"modalities": "text"}, set()),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "hologram"}]}]}, {"unknown part"}),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"image": "https://x/y"}, {"text": "Hi"}]}]},
            {"unknown part"},
        ),
        (CHAT, {"messages": [{"role": "user", "content": [{"inlineData": {"data": "AA"}}]}]}, {"unknown part"}),
        (CHAT, {"messages": [{"role": "user", "content": [{"image_url": {"url": "https://x/y"}}]}]}, {"vision"}),
        (
            CHAT,
            {"messages": [{"role": "user", "content": [{"type": "IMAGE_URL"}, {"type": "TEXT", "text": "a"}]}]},
            {"vision"},
        ),
        (CHAT, {"messages": [{"role": "user", "content": "Hi", "images": ["AAAA"]}]}, {"vision"}),
        (CHAT, {"messages": [{"role": "assistant", "content": None, "audio": {"id": "audio_1"}}]}, {"audio"}),
        (CHAT, {"messages": [{"role": "user", "content": "Hi", "images": [], "audio": None}]}, set()),
        (CHAT, {"messages": [{"role": "tool", "content": {"temperature": 5}}]}, set()),
        (
            RESPONSES,
            {"input": [{"type": "shell_call_output", "output": [{"stdout": "a", "stderr": ""}]}]},
            {"hosted:shell"},
        ),
        (RESPONSES, {"input": [{"type": "x_new", "id": "1"}]}, {"unknown part"}),
        (RESPONSES, {"input": [{"type": "x_new", "role": "user", "content": "Hi"}]}, set()),
        (
            RESPONSES,
            {"input": [{"type": "additional_tools", "tools": 5}]},
            {"hosted:tool_changes", "tools", "hosted:other"},
        ),
    ],
)
def test_a_doubt_about_a_need_lifts(path, body, needs):
    """A need that cannot be read is a need."""
    assert parsed(path, **body).needs == needs


# Odd bytes


@pytest.mark.parametrize(
    ("content", "more", "text"),
    [
        (rb"Hi \ud83d", b"", "Hi �"),
        (rb"Hi \ude00 \ud83d\ude00 \\ud83d", b"", "Hi � 😀 \\ud83d"),
        (rb"\\\ud83dHi\ud83d\u0041", b"", "\\�Hi�A"),
        (b"Hi", b',"temperature":NaN', "Hi"),
        (b"Hi", b',"max_tokens": -Infinity ,"x":[NaN,Infinity]', "Hi"),
        (b"Hi\nthere", b"", "Hi there"),
        (b"Hi \xff\xfe", b"", "Hi ??"),
        (b"Hi \xed\xa0\xbd", b"", "Hi ???"),
    ],
)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_odd_bytes_are_read_and_kept(mark, content, more, text):
    """The router reads a repaired text. The upstream gets the client's bytes, without the byte order mark."""
    body = b'{"model":"auto","messages":[{"role":"user","content":"' + content + b'"}]' + more + b"}"
    request = parse_request(CHAT, mark + body)
    assert request is not None
    assert (request.model, request.turns) == ("auto", (Turn("user", (text,)),))
    assert (request.max_output_tokens, request.body) == (None, body)
    assert len(request.readable) == len(request.body)


def test_a_usual_body_is_not_repaired():
    """Its bytes are what was read, also if a member is odd."""
    assert chat().repaired is None
    prose = chat(messages=[{"role": "user", "content": "Is it [NaN, 1]?"}], temperature="x")
    assert prose.turns == (Turn("user", ("Is it [NaN, 1]?",)),)


# Unreadable bodies


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"null",
        b"[]",
        b'"text"',
        b"hello",
        b'{"model": "auto"',
        b'{"model": "auto"} trailing',
        b'{"model": "auto", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"model": "auto", "x": ' + b'{"x":' * 100_000,
        b"\x1f\x8b\x08\x00\x00\x00\x00\x00",
        b"\xef\xbb\xbf",
        b"\xef\xbb\xbf\xef\xbb\xbf{}",
        b'{"model": "auto", "x": nan}',
    ],
    ids=lambda body: body[:40].decode("latin-1"),
)
def test_what_is_no_json_object_is_refused(body):
    """Every unreadable body raises the same kind of error."""
    with pytest.raises(RequestError):
        parse_request(CHAT, body)


def test_an_error_does_not_repeat_the_body():
    """Prompts are private, so an error does not quote even a broken body."""
    with pytest.raises(RequestError) as caught:
        parse_request(CHAT, b'{"model": "auto", "messages": [{"role": "user", "content": "zebra crossing}]')
    assert "zebra" not in str(caught.value)


def test_unknown_fields_of_any_shape_are_no_error():
    """A member that a vendor adds later is passed through."""
    strange = {"metadata": [1, {"a": None}], "service_tier": {"x": 1.5}, "user": 5}
    message = {**USER, "cache_control": {"type": "ephemeral"}, "name": 5}
    assert chat(messages=[message], **strange).turns == chat().turns


def test_unicode_comes_out_as_the_client_wrote_it():
    """Escaped and unescaped characters of any script are decoded."""
    raw = '{"messages": [{"role": "user", "content": "Grüße, \\u4f60\\u597d \\ud83d\\ude00 😀"}]}'.encode()
    request = parse_request(CHAT, raw)
    assert request is not None
    assert request.turns == (Turn("user", ("Grüße, 你好 😀 😀",)),)


# Signals


def test_signals_are_the_facts_that_rules_use():
    """`turns` counts user messages with text, and `tokens` estimates the whole body."""
    request = chat(
        messages=[
            USER,
            {"role": "assistant", "content": "Chère"},
            {"role": "user", "content": "Now all of it in Italian"},
        ],
        tools=[{"type": "function"}],
        stream=True,
        response_format={"type": "json_object"},
    )
    signals = read_signals(request, 512)
    assert signals == Signals(
        ask=signals.ask,
        tokens=len(request.body) // 4,
        turns=2,
        needs=frozenset({"tools"}),
        strict_output=True,
        stream=True,
        api="chat",
        model=request.model,
        tool_loop=True,
    )
    assert (signals.ask.text, signals.ask.source) == (f"{USER['content']}\nNow all of it in Italian", "joined")


def test_a_greeting_names_no_task():
    """A request without text may name one in its picture, and an agent's probe is no greeting of a person."""
    greeting = {"role": "user", "content": "Hi there!"}
    assert read_signals(chat(messages=[greeting]), 512).no_task
    assert not read_signals(chat(messages=[USER]), 512).no_task
    assert not read_signals(chat(messages=[{"role": "user", "content": [PICTURE]}]), 512).no_task
    assert not read_signals(chat(messages=[greeting], max_tokens=1), 512).no_task


def test_a_picture_costs_a_thousand_tokens_however_large():
    """Base64 is not text: providers charge about the same for a picture of any size."""
    alone = read_signals(chat(messages=[{"role": "user", "content": [PICTURE]}]), 512).tokens
    assert 1_000 <= alone <= 1_060


def test_text_beyond_ascii_counts_two_bytes_a_token():
    """Tokenisers give other scripts more tokens per byte."""
    body = json.dumps({"messages": [{"role": "user", "content": "你好" * 1_000}]}, ensure_ascii=False).encode()
    request = parse_request(CHAT, body)
    assert request is not None
    assert 1_900 <= read_signals(request, 512).tokens <= 2_100


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", {"messages": [{}] * (MAX_ITEMS + 1)}),
        ("/v1/chat/completions", {"messages": [{"content": [{}] * (MAX_ITEMS // 2)}] * 2}),
        ("/v1/completions", {"prompt": [""] * (MAX_ITEMS + 1)}),
        ("/v1/responses", {"input": [{}] * (MAX_ITEMS + 1)}),
        ("/v1/messages", {"system": [{}] * (MAX_ITEMS + 1)}),
    ],
)
def test_more_messages_than_any_conversation_has_are_refused(path, body):
    """Millions of empty messages fit in a body, and each one would delay all other requests."""
    with pytest.raises(RequestError, match=f"more than {MAX_ITEMS} messages and parts"):
        parse_request(path, json.dumps(body).encode())
