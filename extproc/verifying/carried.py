"""The decision and the requirements on the answer, as Envoy carries them from the router to the verifier."""

from typing import Any

import msgspec

from extproc.acceptance.requirements import UNREAD, Requirements
from extproc.api.paths import Api
from extproc.contract.records import JudgedRecord, RequirementsRecord

_decode = msgspec.json.Decoder(Requirements).decode


class JudgedDecision(JudgedRecord, frozen=True, kw_only=True):
    """The decision as the verifier reads it. If the API is unknown, the cohort is empty."""

    api: Api
    revision: str = ""  # of the policy or of its candidate
    app: str | None = None


def read_requirements(carried: dict[str, Any]) -> Requirements:
    """Read the requirements in this metadata. UNREAD if they cannot be read."""
    try:
        return _decode(RequirementsRecord.from_metadata(carried).facts)
    except msgspec.DecodeError:
        return UNREAD
