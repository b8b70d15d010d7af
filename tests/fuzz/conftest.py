"""The effort of the fuzz tests: short and repeatable, or long with `--hypothesis-profile=long`."""

from typing import Any

from hypothesis import HealthCheck, Phase, settings

_ALIKE: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large],
}
# The same examples every time, so that all machines fail alike. Only the long profile shrinks examples.
settings.register_profile(
    "short", max_examples=150, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **_ALIKE
)
# Other examples every time. Failed examples are kept in .hypothesis/ and tried first.
settings.register_profile("long", max_examples=5_000, **_ALIKE)
settings.load_profile("short")
