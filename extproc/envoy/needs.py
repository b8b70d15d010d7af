"""The filters that the settings need. A filter that no request can use is not in a chain.

If one intent needs a filter, every chain has it, because intents change while Envoy keeps its configuration.
"""

from extproc.config.load import Config


def may_judge(config: Config) -> bool:
    """Return whether an answer may be judged: an intent has acceptance rules, or there is a candidate.

    The intents of a candidate are separate files, which change more often.
    """
    return config.policy.candidate is not None or any(intent.accept for intent in config.intents)
