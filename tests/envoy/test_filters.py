"""Settings of single filters that the real Envoy was seen to need."""

from pathlib import Path
from typing import Any

from extproc.config.load import load_config
from extproc.envoy.endings import endings_filter
from extproc.envoy.filters import ENCODINGS, decompressor_name, http_filters

SAMPLES = Path(__file__).parents[2] / "intents"


def test_a_compressed_request_is_decoded_whatever_its_client_says_of_caches() -> None:
    """Envoy decodes no body with `cache-control: no-transform` otherwise, and the router would refuse it."""
    filters: dict[str, Any] = {each["name"]: each for each in http_filters(load_config(SAMPLES), [])}
    for word in ENCODINGS:
        request = filters[decompressor_name(word)]["typed_config"]["request_direction_config"]
        assert request["common_config"] == {"ignore_no_transform_header": True}


def test_the_end_of_any_success_is_read() -> None:
    """The verifier leaves a stream with the status 201, too. No other part gives a verdict then."""
    code = endings_filter()["default_source_code"]["inline_string"]
    assert 'if (handle:headers():get(":status") or ""):sub(1, 1) ~= "2" then return end' in code
