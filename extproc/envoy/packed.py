"""Notes how a gzip body ends, because Envoy's decoder stops silently after the first member or at damage.

The router compares the end with the decoded body, and refuses a body that is not whole.
"""

from extproc.contract.names import Key, Namespace
from extproc.envoy.builders import LUA, Dict, lua, skip_if, typed

PACKED_FILTER = "gzip_end"
# The body is not held back: its chunks reach the decoder one by one, which bounds what a small body unpacks to.
_CODE = f"""
function envoy_on_request(handle)
  local tail = ""
  for chunk in handle:bodyChunks() do
    local length = chunk:length()
    local count = math.min(length, 8)
    if count > 0 then tail = (tail .. chunk:getBytes(length - count, count)):sub(-8) end
  end
  local digits = tail:gsub(".", function(byte) return string.format("%02x", byte:byte()) end)
  handle:streamInfo():dynamicMetadata():set("{Namespace.PACKED}", "{Key.END}", digits)
end
"""


def note_end() -> Dict:
    """Return the filter. Envoy skips it at no cost if the body is not compressed with gzip."""
    encoding = typed("envoy.type.matcher.v3.HttpRequestHeaderMatchInput", header_name="content-encoding")
    is_gzip = {
        "single_predicate": {
            "input": {"name": "encoding", "typed_config": encoding},
            "value_match": {"safe_regex": {"google_re2": {}, "regex": "(?i)gzip"}},
        }
    }
    return skip_if({"not_matcher": is_gzip}, LUA, lua(_CODE))
