"""Tiers -> a complete Envoy bootstrap: what `extproc envoy` prints.

The request path, in the order of the filters: what a client may send (size) -> our server, one message (the
body) -> the buffer filter, which holds the headers until our edit is whole -> the fail-open model name, skipped
when there is a decision -> contract headers from the decision's metadata -> the router, whose cluster comes from
the metadata too. Filters are off by default and switched on by the routes of the four LLM paths; every other
path streams through to the default tier. `older` makes of it what Envoys before 1.40 can run.
"""

from enum import StrEnum
from typing import Any

import yaml

from extproc.config.load import Config
from extproc.envoy.builders import Dict, address
from extproc.envoy.clusters import extproc_cluster, grpc_cluster, tier_cluster
from extproc.envoy.listener import listener
from extproc.envoy.older import NOTES, Cascade, for_older
from extproc.envoy.probe import admin_cluster, probe_listener
from extproc.envoy.tls import ClientTls


def render_envoy(
    config: Config, listen: str, extproc: list[str], admin: str | None, otlp: str | None, *,
    tls: ClientTls | None = None, probe: str | None = None, cascade: Cascade = "priority-group",
) -> str:  # fmt: skip
    """Return the bootstrap as YAML. Addresses are "host:port"; several ext_proc endpoints share the load.

    An ext_proc endpoint may be "unix:///path", and is spoken to in the clear unless `tls` is given. `probe` opens
    the admin interface's read-only pages there, and needs `admin`. Raises ValueError where the intents need another
    `cascade`.
    """
    trusted = sorted({h for rule in config.policy.rules for h in rule.when.headers or {}})
    bootstrap: Dict = {
        "static_resources": {
            "listeners": [listener(config, listen, trusted, otlp)],
            "clusters": [
                extproc_cluster(extproc, tls),
                *(tier_cluster(tier, config) for tier in config.policy.tiers),
                *([grpc_cluster("otlp", [otlp], {"interval": "30s", "timeout": "1s"})] if otlp is not None else []),
            ],
            "secrets": [
                {
                    "name": f"{tier.name}_credential",
                    "generic_secret": {"secret": {"filename": tier.credential}},
                }
                for tier in config.policy.tiers
                if tier.credential
            ],
        }
    }
    if cascade != "priority-group":
        for_older(bootstrap, config, cascade)
    if tls is not None:  # Envoy wants a name for itself before it reads secrets from files
        bootstrap = {"node": {"id": "envoy", "cluster": "envoy"}, **bootstrap}
    if probe is not None:
        assert admin is not None, "its pages are the admin interface's"
        bootstrap["static_resources"]["listeners"].append(probe_listener(probe))
        bootstrap["static_resources"]["clusters"].append(admin_cluster(admin))
    if admin is not None:
        bootstrap = {"admin": {"address": address(admin)}, **bootstrap}
    header = (
        f"# Rendered by `extproc envoy` from revision {config.revision}; render again after a change of tiers.\n"
        + NOTES[cascade]
    )
    return header + yaml.dump(bootstrap, Dumper=PlainDumper, sort_keys=False, width=120)


class PlainDumper(yaml.SafeDumper):
    """No anchors: every part can be read where it stands. The contract's words are written as plain text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


PlainDumper.add_multi_representer(StrEnum, lambda dumper, word: dumper.represent_str(word.value))
