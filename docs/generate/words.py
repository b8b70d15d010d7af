"""Descriptions that the code does not hold, and the prose around the generated tables."""

POLICY = """
`intents/policy.yaml` holds the tiers, the rules and the settings of all intents. [Tiers and keys](../guides/tiers.md) is
the guide. An unknown key is a mistake. A key that appears twice is a mistake, too. `extproc check` names file and line. `extproc
schema policy` prints this as a JSON Schema for editors.
"""

INTENT = """
Every other `*.yaml` file in the folder is one intent. `_background.yaml` has one key, `background`: a list of texts that
belong to no intent. [Write intents](../guides/intents.md) is the guide. `extproc schema
intent` prints this as a JSON Schema for editors.

`extproc calibrate` writes `floor`, `margin`, `evidence`, `scorer` and `chosen`.
"""

TRAFFIC = """
One JSON object on each line. A file whose name ends in `.gz` is read as gzip. [Record and evaluate
traffic](../guides/evaluate.md) is the guide.

A row has either `text` or `request`. An unknown key is a mistake. A line that cannot be used is skipped and named with its
number.
"""

OUTCOME = """
An outcome says how one tier answered, and how good the answer was. Everything is optional. Give `success` or `quality`, not both, and `answer` or
`response`, not both.
"""

TRAFFIC_END = """
## Names of outcomes

`outcomes` maps a name to an outcome. The name is a tier or a tier's model. A tier may be recorded several times in a row:

| Name | The answer was given |
|---|---|
| `small` | with any reasoning setting |
| `small+reasoning` | with reasoning on |
| `small+direct` | with reasoning off |

A cohort that sets `reasoning` is evaluated by the outcome of that setting. If there is none, the plain outcome counts.
"""

TRAFFIC_KEYS = {
    "Row.text": "The words of a person. They become a chat request for a model that the policy may replace.",
    "Row.request": "A whole request body, as a client sends it. Instead of `text`.",
    "Row.path": "The path of the request. Left out: by the shape of the body. Anthropic's bodies need `/v1/messages`.",
    "Row.headers": "The trusted request headers that rules and apps look at. `host` is the host of the request.",
    "Row.intent": 'The true cohort. `null` or `"oos"`: the row belongs to no intent. Left out: it has no label.',
    "Row.outcomes": "The outcome of each tier that answered, by name: see below.",
    "Row.id": "Your own name for the row.",
    "Row.session": "The conversation that the row belongs to. Its rows count as one.",
    "Row.source": "Where the row comes from: an app, a customer or a data set. With two or more sources, `calibrate` "
    "judges the rows of each by fits without it. The commands decide with the intents of the app of this name.",
    "Row.user": "The person who asked. All rows of one person count as one, also in several sessions.",
    "Row.time": "When it was, as RFC 3339 or in seconds since 1970.",
    "Row.variants": 'The same ask in other words, by a name that you choose, as in `{"de": "Warum ist meine Rechnung höher?"}`. '
    "`eval --perturb` tries them.",
    "Row.weight": "How many rows of the traffic this row stands for. `extproc sample` writes it, and every command that reads rows uses it.",
    "Outcome.success": "Whether the answer was right.",
    "Outcome.quality": "How good the answer was, from 0 to 1.",
    "Outcome.tokens_in": "Input tokens, as the upstream reported them.",
    "Outcome.tokens_out": "Output tokens, as the upstream reported them.",
    "Outcome.latency_s": "How long the answer took, in seconds.",
    "Outcome.answer": "The text of the answer. Acceptance rules judge it.",
    "Outcome.finish": "The finish reason that came with `answer`.",
    "Outcome.response": "The whole JSON that the upstream sent, or a text with the events of a stream. Instead of `answer`.",
    "Outcome.propensity": "The chance, above 0 and up to 1, with which this answer was recorded for this row. Give it if a random choice "
    "decided which tiers were asked. Left out: 1. Alone, without an answer: the tier had this chance, and was not drawn.",
}

ACCEPTANCE = """
Rules of an intent's `accept` list. They are tried in order, and the first rejection decides. [Judge and
escalate](../guides/judge.md) is the guide. The word behind a rejection is in [Reasons and
verdicts](reasons.md#reasons-of-a-rejection).
"""

ACCEPTANCE_END = """
## Streams

Under `stream: early`, `regex`, `grounded`, `score` and `gain` are not decided on a part of an answer. They hold for answers that end
within the buffered part.
"""

RULES = {
    "complete": "the upstream finished by itself: not cut by a cap or a filter, and all choices are there",
    "non_empty": "it has a text, a tool call, or other output such as a picture",
    "min_chars": "its text has at least this many characters, without white space around it",
    "max_chars": "its text has at most this many characters, without white space around it",
    "json": "its text is one JSON object or array, without a code fence",
    "json_schema": "its text is JSON that meets this schema, or the schema of the request",
    "tool_calls": "it calls only tools that the request offered, with arguments that meet their schemas",
    "regex": "its text, without white space around it, matches the pattern somewhere (RE2)",
    "no_refusal": "it has no refusal field, was not filtered, and does not open as a refusal",
    "logprob": "the mean log-probability of its tokens is at least `min`",
    "grounded": "at least the share `min` of its sentences is similar to the context of the request (experimental)",
    "score": "it is at least this likely to be right, by the curve that `extproc calibrate --target` fitted",
    "gain": "the costlier tier of `by_prompt` is predicted to gain less than `least` over it, for the mean extra cost",
    "agree": "another model gives an answer with the same result, or a similar text if it states no result",
    "judge": "another model says that it is good",
}

COMMANDS = """
`extproc COMMAND --help` prints the same. [Exit codes](exit-codes.md) are the same for all commands.
"""

CONTRACT = """
These names pass between Envoy, the router and the verifier. Clients and upstreams cannot set any of them. The code has them
in `extproc/contract/`.
"""

HEADERS = {
    "x-router-cluster": "request, in Envoy: where the first attempt goes",
    "x-router-failed": "response, in Envoy: between attempts only: a status of a tier at which the next one is asked",
    "x-router-ladder": "request, in Envoy: before Envoy 1.40 only: the clusters of this request's ladder",
    "x-envoy-max-retries": "request, to Envoy: rungs that this request may take; 0 without a decision",
    "x-envoy-attempt-count": "request, from Envoy: the number of the attempt",
    "x-router-cohort": "response: the cohort that the request belongs to, or [why it belongs to none](reasons.md#requests-of-no-cohort), such as `out_of_scope`",
    "x-router-reason": "response: the one reason for its tier; `fail_open` if Envoy went on without the router, `residency` if it "
    "refused to",
    "x-router-tier": "response: the tier that served",
    "x-router-cache": "response: what the cache did, for cohorts that have one: see [Cache](reasons.md#cache)",
    "x-router-attempts": "response: how many attempts there were",
    "x-router-escalations": "response: how many answers were rejected on the way",
    "x-cascade-verdict": "response: `accept`, `degraded` or `human`; absent if the answer was not judged. Between verifier "
    "and Envoy also `escalate`",
    "x-cascade-reason": "response: why an answer was rejected",
    "x-role": "gRPC stream: which of Envoy's filters opened it",
    "x-counts": "gRPC stream of a verifier: `tokens` if Envoy itself counts the tokens of answers (1.40)",
    "x-endings": "gRPC stream of a verifier: `read` if Envoy itself reads how answers end (1.40)",
}

METADATA = """
Dynamic metadata travels with the request inside Envoy. Clients cannot send it. A key that is absent has no value for this
request.
"""

NAMESPACES = {
    "semantic_router": "the decision, and what verdicts add to it. Envoy's log, spans and response headers read it",
    "semantic_router.ladder": "`priority_groups`: where each attempt goes. A verdict may rewrite it to jump a rung",
    "semantic_router.rungs": "what changes in the body from the second attempt on",
    "semantic_router.attempt": "the attempts so far, from the second one on; Envoy writes it",
    "semantic_router.facts": "the requirements of the request on its answer. For the verifier alone, never logged",
    "semantic_router.answer": "the last rejected answer, in case every rung above fails. Never logged",
    "semantic_router.ledger": "the caller and the conversation (hashes), and the tokens of each judged attempt",
    "semantic_router.conversation": "the keys of the conversation (hashes). Envoy sends them back with the tier that answered. Never logged",
    "semantic_router.packed": "the end of a body that the client compressed with gzip. The router compares it with the body "
    "that Envoy decoded",
    "semantic_router.cache": "where an accepted answer is kept (hashes), and the embedding of the ask. Never logged",
    "envoy.ai.token_usage": "Envoy's own, typed: the tokens of the answer that it passed on",
}

# By key, or by `Record.key` where a key means different things.
RECORD_KEYS = {
    "cluster": "Envoy's cluster of the first attempt",
    "tier": "the tier of the first attempt",
    "reason": "the one reason for the tier",
    "reasoning": "the reasoning setting that was written (`on`, `off`, `low` and so on). `client`, `model`: their choice stands. "
    "`none`: the tier has no way",
    "revision": "the revision of the configuration",
    "mode": "`enforce` or `shadow`",
    "cohort": "the nearest cohort, trusted or not",
    "counted_as": "the cohort that the request belongs to. Without one: [the word that says why](reasons.md#requests-of-no-cohort)",
    "runner_up": "the second nearest cohort",
    "floor": "the least similarity at which a match with that cohort counts",
    "least_margin": "the least margin at which a match with that cohort counts",
    "similarity": "similarity with that cohort",
    "margin": "lead over the second cohort",
    "chance": "the chance of that cohort, where the centroids come from the utterances",
    "background": "the chance that the request belongs to no intent",
    "gain": "the predicted gain in quality of the costlier of the cohort's two tiers, for the mean extra cost, if the "
    "prompt chooses between them",
    "least_gain": "the least gain at which the costlier tier serves",
    "calibrated": "whether the cohort's floor rests on evidence about the present centroids",
    "probability": "the probability that the match is right; only of calibrated cohorts",
    "evidence": "the hash of the data that the probability was fitted on, and the date",
    "ask": "the rule that found the ask: `last_user`, `earlier_user`, `joined`, `raw`, `none`",
    "ask_chars": "length of the ask before it was cut",
    "ask_cut": "whether only its head and tail were matched",
    "tokens": "tokens of the whole request, estimated",
    "stream": "whether the client asked for a stream",
    "rule": "the first rule that applied",
    "proposed_tier": "in shadow mode: the tier that enforcing would have chosen",
    "withheld": "keys of the cohort that were not applied, because no floor says that the match counts",
    "candidate_tier": "with `candidate: {shadow: true}`: the tier that the candidate would choose",
    "candidate_cohort": "the cohort of that decision. Without one: the word that says why",
    "cache": "what the cache did: see [Cache](reasons.md#cache)",
    "cache_tier": "the tier that gave the kept answer which was served",
    "key": "the name of the answer in the store",
    "exact": "hash of the ask as it was written",
    "vector": "the embedding of the ask, as base64 of whole numbers from -127 to 127",
    "checked": "whether a kept answer exists, which is compared with the new one",
    "hit": "the kept answer that was served: its tier and its tokens",
    "app": "the app that the request belongs to",
    "team": "the team of that app",
    "budget": "the budget that is used up, so that the tier was lowered or the request was refused",
    "reserved_microusd": "the expected cost of the request in millionths of a dollar, if a budget holds for it",
    "limits": "`local`: limits and budgets were those of one process, because the store of `state` could not be asked",
    "charge": "the nanodollars that the request has reserved, and its budgets",
    "open": "the attempt whose verdict Envoy completes when the answer ends: its number, a space and its tier",
    "conversation": "whether the conversation stays at the tier that answered it last, and why",
    "ConversationRecord.conversation": "the key of the conversation",
    "kept": "whether the id of the response is needed, too",
    "contract": "the version of these names that the decision was written for",
    "max_retries": "rungs that this request may take",
    "escalations": "answers that were rejected and asked again at the next rung",
    "judge": "by tier, how its answer reaches the verifier: `body` or `stream`. Other tiers are not judged",
    "rungs": "the clusters of the ladder, the first attempt's first",
    "api": "the API of the request: `chat`, `completions`, `responses`, `messages`",
    "logprobs_added": "whether the router asked for log-probabilities that the client did not want",
    "skipped": "rungs that verdicts have jumped, less the attempts that repeated a rung",
    "repeats": "whether a tier below the last one repeats attempts",
    "verdict": "the ruling about the answer: see [Verdicts](reasons.md#verdicts)",
    "verdict_reason": "why the answer was rejected: see [Reasons of a rejection](reasons.md#reasons-of-a-rejection)",
    "bound": "why a rejected answer did not escalate: see [Bounds](reasons.md#bounds)",
    "climbs": "the rung to which a rejected answer of each rung leads, where some tiers are asked only after failures",
    "PackedRecord.end": "the last eight bytes of the body in hexadecimal: the checksum and the length of its decoded content",
    "AttemptsRecord.attempts": "the number of the current attempt",
    "detours": "attempts that reached no tier: they decided whether an attempt is repeated",
    "made": "attempts without these, if there were any. The header `x-router-attempts` has this number",
    "RungsRecord.attempts": "for each further attempt, the patches that make its body from the first attempt's",
    "at": "where the patch begins, in bytes",
    "length": "how many bytes it replaces",
    "text": "what it puts there",
    "facts": "the requirements of the request on its answer, as JSON",
    "body": "the answer",
    "type": "its content type",
    "AnswerRecord.tier": "the tier that gave it",
    "principal": "the caller, as a hash",
    "session": "the conversation, as a hash",
    "key_refused": "the tier whose upstream refused the tier's own key last",
    "failed": "`failed1`, `failed2` and so on: the tier and the status of each attempt that ended with an error",
    "chances": "the chance of each tier to be asked, too, outside the path of the client, as JSON: see `serve --explore`",
    "explored": "the id of that second request, if it was drawn",
    "LedgerRecord.attempts": "each judged attempt, under its number",
    "AttemptRecord.verdict": "the ruling about its answer",
    "AttemptRecord.tier": "the tier that gave it",
    "AttemptRecord.reason": "why it was rejected",
    "input": "input tokens",
    "output": "output tokens",
    "cached": "input tokens that the upstream had cached",
}

REASONS_INTRODUCTION = """
Each word is spelled the same in headers, metadata, logs, metrics, spans and the ledger.
[Troubleshoot](../guides/troubleshoot.md) goes from a word to its cause.
"""

REASONS = {
    "matched": "the cohort's own tier",
    "rule": "a rule named the tier",
    "by_prompt": "the one of the cohort's two tiers that the predicted gain of the prompt chose",
    "tier_floor": "lifted to the lowest tier that a cohort or rule allows",
    "capability": "lifted past tiers that cannot serve the request: context, tools, vision, audio, files, video, hosted tools",
    "background": "a call that an agent makes by itself, such as a title, a probe or an update of its notes: the cheapest tier "
    "that can serve it",
    "residency": "moved to a tier of `only`, or answered with 503 because none of these tiers can serve the request",
    "bound": "kept at the tier that answered the conversation last: see `conversation` in the record",
    "upgrade_rate": "kept at the default tier, as the principal has used up its `upgrades`",
    "budget": "lowered to the tier of a budget that is used up, or answered with 429: see [Budgets](../guides/budgets.md)",
    "pinned": "the client named a tier's own model",
    "passthrough": "not for us to route: a model that `retarget` does not list, or another path",
    "bad_request": "answered with 400: the body cannot be read, a member appears twice, or `model` cannot be replaced",
    "out_of_scope": "nearer to no cohort than that cohort's floor",
    "ambiguous": "two cohorts are too close",
    "abstained": "no floor keeps the risk that the cohort was calibrated for",
    "no_text": "the request has no words of a person",
    "unreadable": "the body is empty, or has too many messages",
    "deadline": "the encoder took too long, or had too much to do",
    "encoder_error": "the encoder failed",
    "app_off": "the intents of its app have mistakes. It is answered with 503 if they may confine requests to some tiers",
}

NOT_A_COHORT = """
A request belongs to a cohort if its match counts. Otherwise one of these words stands in the place of the cohort: in
`extproc report`, in metrics, in `x-router-cohort` and in `counted_as` of the decision log. So the cost of a cohort is its
own. The word says why no cohort counts. The reason says why the tier was chosen. A long text that is out of scope can have the
reason `capability`, and counts as `out_of_scope`. A request that names a tier's model
counts as `pinned`. No intent can have one of these names.
"""

UNJUDGED = {
    "no_cohort": "the request belongs to no cohort",
    "no_rule": "the cohort has no `accept`, or no tier and no person above could give a better answer, or `mode: shadow`",
    "last_rung": "the answer came from the last rung of the ladder",
    "cached": "the cache served an earlier answer, which a rule accepted",
    "lost": "a rule should have looked at it: the verifier was down, or its verdict came too late",
    "unknown": "an older release wrote the row",
}

CACHE_WORDS = {
    "hit": "an earlier answer to the same words was served, and no tier was asked",
    "semantic": "an earlier answer to the same question in other words was served, and no tier was asked",
    "checked": "an answer was there, and a tier answered again to check it",
    "miss": "no accepted answer to this question was there",
    "client": "not asked: `cache-control` of the client forbids it",
    "personal": "not asked: the request is about one person, or has an address or a number of an account",
    "moment": "not asked: the answer depends on the day or the hour",
    "sampling": "not asked: each answer has to be another one (a `temperature` above 0, or an ask for a password or a random number)",
    "form": "not asked: the request has state, media or hosted tools, or asks for more than one text",
    "anonymous": "not asked: no header names the principal, and `scope` is `principal`",
    "off": "off: too many of its checked hits were wrong",
}

COURSES = {
    "kept": "the decision is for the tier that answered last",
    "kept_sealed": "only that tier can read the state in the request",
    "kept_tool_loop": "the model continues its own turn, after a tool result",
    "kept_cache": "`switch_budget` does not pay for the prompt cache that a move gives up",
    "moved": "another tier serves, for the reason of the decision",
    "moved_stripped": "another tier serves, and the sealed items that it cannot read were removed",
    "lost": "the request has state of an unknown tier: the tier of the requested model gets it, or the default tier",
}

UNDECIDED = {
    "fail_open": "Envoy went on without the router, to the default tier",
    "none": "in the ledger: nothing was sent to an upstream",
}

VERDICTS = {
    "accept": "the rules accept the answer, or the known part of a stream gives no reason to reject it",
    "escalate": "rejected: Envoy asks the next rung",
    "degraded": "rejected or not fully judged, and served all the same",
    "human": "rejected, and handed to a person",
    "recorded": "rejected after it had left for the client",
    "rescued": "rejected before, and served after all, as every rung above failed",
}

REJECTIONS_INTRODUCTION = """
`verdict_reason` in the decision log, `x-cascade-reason` in the answer. `upstream_error`, `malformed`,
`wrong_type`, `wrong_framing` and `incomplete` need no rule: no client could read these answers. The last three,
`too_large`, `slow` and `unavailable`, say why an answer was not fully judged.
"""

REJECTIONS = {
    "upstream_error": "an error inside an answer with a status of success",
    "malformed": "no body (as with status 204), broken JSON, a broken event, or an encoding that the verifier does not decode",
    "wrong_type": "the content type does not fit the content",
    "wrong_framing": "a stream where none was asked for, or none where one was",
    "incomplete": "the answer has no proper end, or too few choices",
    "cut": "rule `complete`: a cap on tokens ended the answer",
    "filtered": "rule `complete`: a content filter ended the answer",
    "empty": "rule `non_empty`: no text, no tool call and no other output",
    "too_short": "rule `min_chars`",
    "too_long": "rule `max_chars`",
    "not_json": "rules `json`, `json_schema`: the text is not JSON",
    "schema": "rule `json_schema`: the JSON does not meet the schema",
    "no_tool_call": "rule `tool_calls`: the request demanded a call",
    "unknown_tool": "rule `tool_calls`: a call of a tool that was not offered",
    "tool_arguments": "rule `tool_calls`: arguments that do not meet the tool's schema",
    "regex": "rule `regex`: no match",
    "refusal": "rule `no_refusal`",
    "low_logprob": "rule `logprob`",
    "ungrounded": "rule `grounded`",
    "low_score": "rule `score`",
    "predicted_gain": "rule `gain`: the costlier tier is predicted to gain enough over this answer",
    "agree": "rule `agree`: the other model's answer has another result, or is not similar",
    "judge": "rule `judge`: the other model says no",
    "too_large": "not rejected: too large to be judged, so served as `degraded`",
    "slow": "not rejected: its first words did not come in time, so the stream was released as `degraded`",
    "unavailable": "a rule could not run: the answer is served as `degraded`, or rejected with `on_unavailable: reject`",
}

BOUNDS = {
    "last_rung": "the ladder has ended",
    "cohort_share": "the cohort has used up its share (`escalate.share`)",
    "principal_rate": "the principal has used up its rate (`escalations`)",
}

ENDINGS = {
    "accepted": "answered, and no rule rejected the answer",
    "degraded": "answered with an answer that was rejected, or was not fully judged",
    "human": "handed to a person",
    "failed": "an error, an answer that was cut, or a success without a body (204, 205)",
    "cancelled": "the client left",
}

RELOADS = {
    "applied": "the new revision serves",
    "invalid": "refused: the files have a mistake",
    "regression": "refused: the gate found a cohort that got worse",
    "unseen": "refused: a cohort goes to a cheaper tier, and the gate's traffic has no answers of that tier",
    "unclear": "refused: a cohort may be worse, and the gate's traffic is too little to show it",
    "gate": "refused: the gate had no result",
    "error": "refused: an unexpected error",
}

MODES = {
    "body": "the verifier gets the answer as a whole",
    "stream": "the verifier gets the answer chunk by chunk",
    "router": "the stream of the router filter",
    "verifier": "the stream of a verifier filter: one attempt",
    "rescue": "the stream of the rescue filter: a failure, while a rejected answer is kept",
}

HOLD_STATES = {
    "start": "is passed on: the headers of the answer have not arrived",
    "holding": "is buffered, until there is a ruling",
    "passing": "is passed on. If no final ruling was made, the whole answer is judged at its end, and the verdict is recorded",
    "dropping": "is dropped: the client has another answer",
}

HOLD_STEPS = {
    "hold": "the headers have a status of success, and the answer is to be judged before it goes on: a whole body, or a stream under "
    "`stream: early` or `buffer`",
    "pass": "the headers have any other status, the cohort is gone after a reload, or a stream is under `stream: record`",
    "release": "there is a ruling. The first message carries it, as a header and as metadata",
    "drop": "the ruling is `human`. The client gets the status and the message of `human:` instead",
}

DECISION_LOG = """
Envoy writes one JSON line of every exchange. [Observe](../guides/observe.md#decision-log) is the guide. The JSON Schema is
[decision-log.schema.json](../decision-log.schema.json), and a test holds lines of the real Envoy to it. No word of a request or
an answer is in it.
"""

TELEMETRY = """
They are exported over OTLP, to Prometheus, or both: see [Observe](../guides/observe.md#metrics-and-spans). Labels hold names and
words, never text of a request.
"""

LABELS = {
    "app": "the [app](../guides/budgets.md#applications) that the request belongs to. Requests of no app do not have this label",
    "team": "the label `team` of the app. The metric has the other labels of the app, too",
    "budget": "the name of a budget: `all`, `app/NAME`, `team/NAME`, or one of these with `/principal` at its end",
    "cohort": "the cohort that the request belongs to, or [why it belongs to none](reasons.md#requests-of-no-cohort)",
    "tier": "for decisions, the tier of the first attempt; elsewhere the tier that answered",
    "reason": "for decisions and outcomes, a [reason](reasons.md#reasons-of-a-decision); for verdicts and rejections, a [reason of "
    "a rejection](reasons.md#reasons-of-a-rejection). A refused reload has the [word of its refusal](reasons.md#reloads)",
    "verdict": "a [verdict](reasons.md#verdicts)",
    "bound": "a [bound](reasons.md#bounds), if one kept the answer from escalating",
    "rule": "the acceptance rule that could not run",
    "stage": "`read`, `embed`, `match`, `cache` or `write`",
    "outcome": "for exchanges, an [ending](reasons.md#endings); for reloads, `applied` or `refused`",
    "answer": "`last`: the answer of the last attempt. `rejected`: an answer that was rejected before it",
    "rating": "`up`, `down` or `none` (only a label)",
    "signal": "`re_asked`, `edited` or `repeated`: see [Learn from traffic](../guides/learn.md#signals-without-feedback)",
    "type": "`input`, `output` or `cached` (part of the input)",
    "revision": "the revision of the configuration that serves",
    "error.type": "of a failure of the router, the Python class of the error; of `gen_ai.client.operation.duration`, the HTTP status or the ending",
    "status": "the HTTP status of the error, or `no_answer`: the connection failed, or the time was up",
    "result": "`cached`, `encoded`, or `late`: there was no vector in time, and the request was decided without one",
    "gen_ai.operation.name": "`chat` or `text_completion`",
    "gen_ai.provider.name": "the API that is spoken: `openai` or `anthropic`",
    "gen_ai.request.model": "the model of the tier",
    "gen_ai.response.model": "the model that the upstream says it answered with",
    "gen_ai.token.type": "`input` or `output`",
}

SPANS = """
## Spans

| Span | When | Attributes |
|---|---|---|
| `semantic_router.decide` | a decision, as long as its stages took | `semantic_router.` and each key of the [decision](contract.md#semantic_router), `semantic_router.STAGE_ms`, and the attributes below |
| `semantic_router.judge` | a verdict | `semantic_router.cohort`, `.verdict`, `.reason`, `.bound`, `.attempt`, and the tokens below |

| `chat MODEL`, `text_completion MODEL` | an exchange that reached a tier, from the ledger's log after its end | the GenAI attributes below, and `semantic_router.tier` |

The first two are children of the span that Envoy sends with the gRPC stream. The last one is a client span of the GenAI
conventions. Its parent is the `traceparent` of the request to the upstream.

| Attribute of the GenAI conventions | Value |
|---|---|
| `gen_ai.operation.name` | `chat` or `text_completion` |
| `gen_ai.provider.name` | the API that is spoken: `openai` or `anthropic` |
| `gen_ai.request.model` | the model that the client asked for; of the last span, the model of the tier |
| `gen_ai.response.model` | the model that the upstream says it answered with |
| `gen_ai.usage.input_tokens`, `.output_tokens`, `.cache_read.input_tokens` | tokens, as the upstream reported them |
| `gen_ai.response.time_to_first_chunk` | seconds until the first chunk of a stream |
| `error.type` | the HTTP status or the ending of an exchange that failed |
| `gen_ai.request.max_tokens` | the client's own cap |
| `gen_ai.request.stream` | true for a stream |
| `gen_ai.output.type` | `json` if the client demanded JSON |
"""

LOG = """
The router writes its log to standard error: date, level, line. `...` stands for a part that differs each time. No line holds a
word of a request or an answer.
"""

# By the function that writes the line.
LOG_LINES = {
    "Ledger._run": "Envoy sent a batch that is not an access log. Its outcomes are lost. Do Envoy and the router have the same "
    "version of the configuration?",
    "ExternalProcessor.process": "An error of the router ended one exchange. Envoy sent the request to the default tier. The "
    "traceback follows: please report it.",
    "_prometheus_reader": "The port for Prometheus cannot be opened. Traffic goes on without it. Choose another port with "
    "`OTEL_EXPORTER_PROMETHEUS_PORT`.",
    "Ledger._drop": "Outcomes are dropped. Traffic is not affected. Look at the disk, the lock or the database that the line names.",
    "Ledger._store_all": "The ledger works again after the line above.",
    "Keeper._run": "Partitions and hourly sums of a ledger in Postgres are not kept up to date. The line says why. Outcomes "
    "are stored, and reports are exact and slower. It is tried again every 30 seconds.",
    "compile_all": "The files of the candidate have the mistakes that the line lists. The policy serves every request. `extproc "
    "check` lists them, too. The candidate is read again after an edit.",
    "_note_candidate": "A new candidate decides about its share of the conversations, or beside the policy.",
    "follow_rollout": "The ledger cannot be read. The line says why. The candidate keeps its share, and is compared as soon as the "
    "ledger can be read.",
    "follow_golden": "The file of `--golden` has a line that cannot be used, or is gone. Correct it: it is read again within an hour.",
    "_log": "Decisions about rows of `--golden` have flipped. The line names the rows. The runbook of "
    "`SemanticRouterGoldenFlipped` is in [On call](../guides/on-call.md#semanticroutergoldenflipped).",
    "_log 2": "The decisions about all rows of `--golden` are right again.",
    "_act": "The router has stopped or promoted the candidate. The line has the figures. `extproc rollout status` shows them, too. "
    "Another edit of the candidate starts the comparison again.",
    "watch": "An edit of the intents was refused. The line names file, line and remedy, as `extproc check` does.",
    "watch 2": "A reload failed with an unexpected error. The traceback follows: please report it.",
    "watch 3": "An edit was applied.",
    "warn_of_sources": "The policy has `apps`, and their `source` is not one of them. If it is meant to be an app, correct its name in the rows.",
    "VectorStore._give_up": "The file of vectors in the cache folder is full or damaged. Nothing is lost but time. Free some space, "
    "delete the file, or set `XDG_CACHE_HOME` to a folder that can be written.",
    "_note": "The changes of an edit. `needs Envoy` lists the changes that only Envoy can carry out.",
    "_note 2": "Envoy still has the old values of the changes that the line before lists. `extproc status` lists them, too.",
    "keep": "The folder for it cannot be written. Set `XDG_STATE_HOME` to one that can be, if a start should survive a mistake.",
    "_store": "The folder of the prepared model cannot be written. Make it writable for the router if its starts take too long.",
    "_last_good": "The router was started with a mistake in its files, and serves the files that served last. The line names "
    "the mistake. `extproc status` shows it, too.",
    "AnswerStore._saw": "A share of the hits is checked, and too many were wrong, so every request of this cohort goes to a tier. "
    "`extproc status` has the figures. Look for a change since the answers were made, then edit the intent.",
    "open_state": "Envoy spreads the requests of a conversation over the workers, so about half of them, or more, find nothing. "
    "Each worker counts its own part of every budget. Set `state` to the URL of a Redis or Valkey.",
    "RedisLink.stop": "The store is down or slow. Traffic goes on. Each router process remembers the conversations that it "
    "serves itself, and goes on from the sums of budgets that it saw last. Look at the Redis that `state` names.",
    "RedisSpending._see": "The store was emptied, or restored from an older snapshot. Each router process raises the sums of "
    "budgets to those that it saw last. Sums of principals that no router has seen since its start are lost. Restart one "
    "router with `--ledger` to get these, too.",
    "RedisLink._ping": "The store works again after the line above. What was counted in the meantime is added to it.",
    "_instead": "The files of an app have the mistakes that the line lists. The app keeps its earlier intents. Other apps are not "
    "affected.",
    "_instead 2": "The same, and the app had no earlier intents, nor last good files on disk. Its default tier serves. If its files may confine requests to some "
    "tiers, they are refused instead.",
    "follow_spent": "The ledger cannot be read, so new budgets of this process begin with the sums of the store, or with nothing. It "
    "is read again every 30 seconds.",
    "enqueue": "The review queue is down. The client got its answer, and the case is lost. Look at the queue that `human.queue` names.",
    "reloading_credentials.renewed": "New certificates are used from the next connection on.",
    "reloading_credentials.renewed 2": "The new certificate files cannot be used, and the old ones stay. Replace all three files.",
    "_stop_without.gone": "The process that started the workers was killed. This worker ends, too. Start the router again.",
    "_Worker.keep_alive": "A worker ended and is started again. Its own log says why.",
    "load": "Which encoder serves, and what `extproc prepare` measured.",
    "announce": "The router serves.",
    "Explorer.has_room": "The second requests of `--explore` have reached their budget. Requests have no chance until some of it is free.",
    "drain": "The router was told to stop, and finishes its streams.",
    "drain 2": "The router has stopped.",
    "_admitted": "The gate compares this revision with the active one. It can take minutes.",
    "matching": "The fitted centroids are stale. Centroids come from the utterances again. Run `extproc calibrate` again, or delete "
    "the file.",
    "usable_gains": "An intent has `by_prompt`, and the file that it needs is not in the folder, or is of another "
    "release. Copy it, or run `extproc calibrate --target` again.",
    "usable_gains 2": "The predicted gains are stale. The intents' own tiers serve. Run `extproc calibrate --target` again, or "
    "delete the file.",
    "compile_snapshot": "Some utterances lie nearer to another cohort by the fitted centroids. Reword or move them.",
    "StoringSentences._store": "The folder of the prepared encoder is read-only or full. Starts take longer. Run `extproc "
    "prepare` with these intents where the folder can be written.",
    "_for_onnxruntime": "The model cannot be converted for ONNX Runtime. `extproc prepare` chooses between the other back ends.",
    "load_sentences": "The encoder runs by torch, several times slower. Run `extproc prepare`.",
    "watch_lag": "The process got no CPU, or something blocked the event loop. Give it more CPU, workers or replicas.",
}

DIALECTS_START = """
A dialect says how the models of a provider take a choice of reasoning. A tier names it in `reasoning`, and [Tiers and
keys](../guides/tiers.md#reasoning-dialects) is the guide. The first row whose pattern matches the tier's `model` applies.
The last row of a dialect matches every name.

`Fields` are the members that are written, by API. `Efforts` has the word for each level, and for reasoning that is on
without a level. `Off` is the value for reasoning that is off. `Refused` members are removed from requests. An effort that
the table does not know passes unchanged. Fields of other dialects are always removed. In an API without a field here,
nothing is written.
"""

DIALECTS = {
    "none": "Nothing is known about the model. No member is written or removed.",
    "qwen3": "Qwen on a server of open models, or in Alibaba Cloud Model Studio.",
    "deepseek": "DeepSeek's own API, or DeepSeek on a server of open models.",
    "gpt-oss": "gpt-oss on any server. It always reasons.",
    "openai": "Models of OpenAI. `azure/gpt-5.1` and other names with a prefix match, too.",
    "anthropic": "Claude, in the Messages API.",
    "gemini": "The OpenAI-compatible endpoint of Gemini.",
}
