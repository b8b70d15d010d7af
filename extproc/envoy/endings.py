"""The ends of answers that the verifier leaves to Envoy.

The rule `complete` is certain only at the end of an answer. When no other rule is open, the verifier leaves the
stream and notes the attempt as open. A filter of the attempt looks for the finish reason in the chunks as they
pass, and completes the verdict. It also does so if the stream ends without a finish reason. If the stream breaks,
no filter runs. Then the attempt has no verdict, as if the verifier had read it.
"""

from collections.abc import Iterator

from extproc.acceptance.checks import OK
from extproc.acceptance.rules import Complete
from extproc.acceptance.verdict import judge
from extproc.api.gathered import FINISH_PREFIX, FINISHES
from extproc.api.observation import CONTINUES, Observation, Usage
from extproc.contract.names import Key, Namespace
from extproc.envoy.builders import Dict, lua
from extproc.verifying.ruling import JudgedAttempt, rule_late

# A name and a word may be cut by the end of a chunk. Both together are shorter than this.
_OVERLAP_BYTES = 128
# A longer finish reason is unknown.
_MOST_WORD_BYTES = 64
# The finish reason of a chat choice that failed, and the ending of a response that failed.
_FAILURES = ("error", "failed")


def endings_filter() -> Dict:
    """Return the filter that completes the verdicts of attempts whose answers are streams."""
    return lua(_READ_ENDING)


def _rulings() -> Iterator[str]:
    """Yield, for each finish reason, the verdict of an answer that no other rule rejects, as a member in Lua."""
    for raw in dict.fromkeys((*FINISHES, *FINISHES.values(), *CONTINUES)):
        seen = Observation(finish=FINISHES.get(raw, raw), n_choices=1, complete=True)
        yield f'["{raw}"] = {_ruling(seen)}'
    for raw in _FAILURES:
        yield f'["{raw}"] = {_ruling(Observation(error=raw))}'


def _ruling(observation: Observation) -> str:
    ruling = rule_late(judge((Complete(),), observation), JudgedAttempt(""), Usage())
    reason = "nil" if ruling.verdict.reason == OK else f'"{ruling.verdict.reason}"'
    return f'{{"{ruling.word}", {reason}}}'


# A name in quotes that a colon follows is a name of JSON: inside a text, each quote has a backslash before it.
_READ_ENDING = f"""
local rulings = {{ {", ".join(_rulings())} }}
local unknown = {_ruling(Observation(finish="unknown", n_choices=1, complete=True))}
local without_ending = {_ruling(Observation(ended=True))}
local after_error = {_ruling(Observation(error="error"))}

local readers = {{}}
function readers.chat(seen, text)
  seen.finish = text:match('"finish_reason"%s*:%s*"([^"]+)"')
  return seen.finish ~= nil
end
readers.completions = readers.chat
function readers.messages(seen, text)
  seen.finish = seen.finish or text:match('"stop_reason"%s*:%s*"([^"]+)"')
  return text:find('"type"%s*:%s*"message_stop"') ~= nil or text:find("\\nevent:%s*message_stop") ~= nil
end
function readers.responses(seen, text)
  seen.why = seen.why or text:match('"incomplete_details"%s*:%s*{{%s*"reason"%s*:%s*"([^"]+)"')
  for ending in text:gmatch('"type"%s*:%s*"response%.(%a+)"') do
    if ending == "completed" or ending == "incomplete" or ending == "failed" then seen.finish = ending end
  end
  if seen.finish == "incomplete" then
    seen.finish = seen.why or seen.finish
  end
  return seen.finish ~= nil and seen.finish ~= "incomplete"
end

local function has_error(text)
  return text:find('"error"%s*:%s*[{{"]') ~= nil or text:find('"type"%s*:%s*"error"') ~= nil
end

-- Returns the verdict and its reason.
local function read_ending(handle, reader)
  local seen, rest, failed = {{}}, "", false
  for chunk in handle:bodyChunks() do
    local text = rest .. chunk:getBytes(0, chunk:length())
    if reader(seen, text) then
      local finish = seen.finish
      if finish == nil then return without_ending end
      if #finish > {_MOST_WORD_BYTES} then return unknown end -- the next line takes the square of its length
      finish = finish:match("^%s*(.-)%s*$"):lower():gsub("^{FINISH_PREFIX}", "")
      return rulings[finish] or unknown
    end
    failed = failed or has_error(text)
    rest = text:sub(-{_OVERLAP_BYTES})
  end
  return failed and after_error or without_ending
end

function envoy_on_response(handle)
  if (handle:headers():get(":status") or ""):sub(1, 1) ~= "2" then return end -- the verifier judges any success
  local metadata = handle:streamInfo():dynamicMetadata()
  local decision = metadata:get("{Namespace.DECISION}")
  local reader = decision and readers[decision["api"]]
  if reader == nil then return end
  local ruling = read_ending(handle, reader)
  metadata = handle:streamInfo():dynamicMetadata()
  local ledger = metadata:get("{Namespace.LEDGER}")
  local number, tier = (ledger and ledger["{Key.OPEN}"] or ""):match("^(%d+) ?(.*)$")
  if number == nil then return end -- the verifier gave its verdict, or there is no verifier
  local attempt = {{ ["{Key.VERDICT}"] = ruling[1] }}
  if tier ~= "" then attempt["{Key.TIER}"] = tier end
  if ruling[2] then
    attempt["{Key.REASON}"] = ruling[2]
    metadata:set("{Namespace.DECISION}", "{Key.VERDICT_REASON}", ruling[2])
  end
  metadata:set("{Namespace.DECISION}", "{Key.VERDICT}", ruling[1])
  metadata:set("{Namespace.LEDGER}", number, attempt)
end
"""
