"""Tiers whose attempts have a shorter limit than those of others.

Envoy has one limit for all attempts of a request, and it may not cut a stream that flows. So the requests of these
tiers pass a listener inside Envoy. It forwards bytes, and closes a connection that is silent for too long. For the
attempt that is a broken connection.
"""

from collections.abc import Iterator

from extproc.config.load import Config
from extproc.envoy.builders import Dict, typed
from extproc.settings import Tier


def silence_of(tier: Tier, config: Config) -> float | None:
    """Return after how many seconds of silence an attempt at this tier ends. None: at the longest limit of all."""
    limit_s = config.policy.attempt_s(tier)
    return limit_s if limit_s < config.policy.longest_attempt_s else None


def silence_name(tier: Tier, index: int) -> str:
    """Return the name of the listener for one upstream of a tier, and of the cluster behind it.

    The names of tiers cannot contain a ":".
    """
    return f"{tier.cluster_name}:{index}"


def silence_address(tier: Tier, index: int) -> Dict:
    """Return the address of that listener, as a part of an endpoint."""
    internal = {"server_listener_name": silence_name(tier, index), "endpoint_id": str(index)}
    return {"address": {"envoy_internal_address": internal}}


def silence_listeners(config: Config) -> Iterator[Dict]:
    """Yield a listener for each upstream of the tiers with a shorter limit."""
    for tier in config.policy.tiers:
        silence_s = silence_of(tier, config)
        if silence_s is None:
            continue
        for index in range(len(tier.addresses)):
            name = silence_name(tier, index)
            proxy = typed(
                "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
                stat_prefix="silence",
                cluster=name,
                idle_timeout=f"{silence_s:g}s",
            )
            filters = [{"name": "envoy.filters.network.tcp_proxy", "typed_config": proxy}]
            yield {"name": name, "internal_listener": {}, "filter_chains": [{"filters": filters}]}


def internal_listeners() -> Dict:
    """Return the part of the bootstrap that listeners inside Envoy need."""
    kind = "envoy.extensions.bootstrap.internal_listener.v3.InternalListener"
    return {"bootstrap_extensions": [{"name": "envoy.bootstrap.internal_listener", "typed_config": typed(kind)}]}
