"""The generated files, and the function that writes each of them."""

from collections.abc import Callable

from docs.generate.acceptance_rules import acceptance_page
from docs.generate.commands import commands_page
from docs.generate.contract_names import contract_page, decision_log_page, reasons_page
from docs.generate.dialects import dialects_page
from docs.generate.floors import floors_picture
from docs.generate.log_lines import log_lines_page
from docs.generate.router_stream import router_stream_table
from docs.generate.telemetry import telemetry_page
from docs.generate.user_files import intent_page, policy_page, traffic_page
from docs.generate.verifier_stream import verifier_stream_picture, verifier_stream_tables

# File below docs/ -> its text.
PAGES: dict[str, Callable[[], str]] = {
    "reference/policy.md": policy_page,
    "reference/intent.md": intent_page,
    "reference/dialects.md": dialects_page,
    "reference/acceptance.md": acceptance_page,
    "reference/cli.md": commands_page,
    "reference/contract.md": contract_page,
    "reference/reasons.md": reasons_page,
    "reference/metrics.md": telemetry_page,
    "reference/decision-log.md": decision_log_page,
    "reference/traffic.md": traffic_page,
    "reference/logs.md": log_lines_page,
    "generate/router-stream.md": router_stream_table,
    "generate/verifier-stream.md": verifier_stream_tables,
    "img/floors.svg": floors_picture,
    "img/hold.svg": verifier_stream_picture,
}
