"""Render a complete Envoy bootstrap from the config. `extproc envoy` prints it.

A request on an LLM path passes these filters, in this order:

1. Three filters decompress the body.
2. The size limit answers 413 to a body that is too large.
3. The router filter sends the ext_proc server one message, the body, and gets the decision.
4. The buffer filter keeps the headers until the changed body is complete.
5. The header filter copies the decision's metadata into headers.
6. The fail-open filter writes the default tier's model name. Envoy skips it if there is a decision.
7. Envoy's router takes the cluster of each attempt from the metadata, too.

Only the routes of the LLM paths enable all of them. Other paths are closed unless the policy opens them: see
`other_routes`. `older` changes the bootstrap for Envoys before 1.40.
"""

from enum import StrEnum
from typing import Any

import yaml

from extproc.config.load import Config
from extproc.envoy.builders import Dict, address
from extproc.envoy.clusters import (
    extproc_cluster,
    grpc_cluster,
    repeating_cluster,
    silent_clusters,
    tier_cluster,
)
from extproc.envoy.listener import listener
from extproc.envoy.older import NOTES, adapt_to_older
from extproc.envoy.other_routes import opened_clusters
from extproc.envoy.probe import admin_cluster, probe_listener
from extproc.envoy.residency import refusing_clusters
from extproc.envoy.silence import internal_listeners, silence_listeners
from extproc.envoy.tier_filters import key_secrets
from extproc.envoy.tls import ClientTls
from extproc.envoy.unsupported import Cascade, check_cascade


def render_envoy(
    config: Config, listen: str, extproc: list[str], admin: str | None, otlp: str | None, *,
    tls: ClientTls | None = None, probe: str | None = None, cascade: Cascade = "priority-group",
) -> str:  # fmt: skip
    """Return the bootstrap as YAML. Addresses are "host:port"; several ext_proc endpoints share the load.

    An ext_proc endpoint may be "unix:///path". Without `tls`, Envoy talks to it in plaintext. `probe` is the
    address of a listener for read-only pages of the admin interface, and needs `admin`. Raises ConfigError if the
    intents need another `cascade`.
    """
    bootstrap = bootstrap_of(config, listen, extproc, admin, otlp, tls, probe, cascade)
    return as_yaml([bootstrap], config, NOTES[cascade])


def sample_of(config: Config) -> Dict:
    """Return the bootstrap at fixed addresses. If two configurations have the same one, Envoy needs no update."""
    return bootstrap_of(config, "0.0.0.0:10000", ["127.0.0.1:50051"])


def bootstrap_of(
    config: Config, listen: str, extproc: list[str], admin: str | None = None, otlp: str | None = None,
    tls: ClientTls | None = None, probe: str | None = None, cascade: Cascade = "priority-group",
) -> Dict:  # fmt: skip
    """Return the bootstrap as a value. The arguments are those of `render_envoy`."""
    bootstrap: Dict = {"static_resources": static_resources(config, listen, extproc, otlp, tls, cascade)}
    if len(bootstrap["static_resources"]["listeners"]) > 1:
        bootstrap |= internal_listeners()
    if tls is not None:  # Envoy reads secrets from files only if it has a node id
        bootstrap = {"node": {"id": "envoy", "cluster": "envoy"}, **bootstrap}
    if probe is not None:
        assert admin is not None, "the probe listener forwards to the admin interface"
        bootstrap["static_resources"]["listeners"].append(probe_listener(probe))
        bootstrap["static_resources"]["clusters"].append(admin_cluster(admin))
    if admin is not None:
        bootstrap = {"admin": {"address": address(admin)}, **bootstrap}
    return bootstrap


def static_resources(
    config: Config, listen: str, extproc: list[str], otlp: str | None, tls: ClientTls | None, cascade: Cascade
) -> Dict:
    """Return the listener, the clusters and the secrets. The arguments are those of `render_envoy`."""
    check_cascade(config, cascade)
    rules = [rule.when.headers or {} for rule in config.policy.rules]
    apps = [app.headers or {} for app in config.policy.apps.values()]
    rule_headers = sorted({header for headers in (*rules, *apps) for header in headers})
    follow_keys = cascade == "priority-group"
    resources: Dict = {
        "listeners": [listener(config, listen, rule_headers, otlp), *silence_listeners(config)],
        "clusters": [
            extproc_cluster(extproc, tls),
            *(tier_cluster(tier, config, follow_keys) for tier in config.policy.tiers),
            *(cluster for tier in config.policy.tiers for cluster in silent_clusters(tier, config)),
            *opened_clusters(config, follow_keys),
            *refusing_clusters(config),
            *([repeating_cluster(config)] if follow_keys else []),
            *([grpc_cluster("otlp", [otlp], {"interval": "30s", "timeout": "1s"})] if otlp is not None else []),
        ],
        "secrets": [] if follow_keys else key_secrets(config.policy.tiers),
    }
    if cascade != "priority-group":
        adapt_to_older(resources, config, cascade)
    return resources


def as_yaml(documents: list[Dict], config: Config, note: str = "") -> str:
    """Return the documents as YAML, with the revision and `note` at the top."""
    header = (
        f"# Rendered by `extproc envoy` from revision {config.revision}. Render it again after you change tiers.\n"
    )
    return header + note + yaml.dump_all(documents, Dumper=PlainDumper, sort_keys=False, width=120)


class PlainDumper(yaml.CSafeDumper):
    """Writes repeated parts in full instead of as anchors, and the contract's enums as plain text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


PlainDumper.add_multi_representer(StrEnum, lambda dumper, word: dumper.represent_str(word.value))
