"""How hard the fuzz tests try: bounded and repeatable by default, `--hypothesis-profile=long` to search on."""

from hypothesis import HealthCheck, Phase, settings

_ALIKE = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large]}
# The same examples every time: what fails on one machine fails on all. Made small by the long form, which has time.
settings.register_profile(
    "short", max_examples=150, derandomize=True, database=None, phases=[Phase.explicit, Phase.generate], **_ALIKE
)
# Other examples every time; what failed is remembered in .hypothesis/ and tried first.
settings.register_profile("long", max_examples=5_000, **_ALIKE)
settings.load_profile("short")
