"""Render the manifests that depend on other files. `make manifests` writes them, and a test checks that it was run.

The manifests of the tiers are the output of `extproc envoy`: a bootstrap for Envoy, or resources for a gateway
that brings its own. Another one has the alerts and the dashboard of deploy/observe. The Helm chart has links to
rendered files.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from extproc.config.load import Config, ConfigError, load_config
from extproc.envoy.bootstrap import as_yaml, render_envoy
from extproc.envoy.envoy_gateway import envoy_gateway
from extproc.envoy.istio import istio
from extproc.envoy.shared import NAMESPACE, ROUTER, Gateway

HERE = Path(__file__).parent
OBSERVE = HERE.parent / "observe"
INTENTS = HERE.parents[1] / "intents"
SOCKET = "/run/extproc/router.sock"
# The gateway of the overlays `envoy-gateway` and `istio`.
GATEWAY = Gateway(NAMESPACE, "llm", "http", "llm.example.com")


def rendered(config: Config) -> dict[str, str]:
    """Return the text of every rendered file, by its path under deploy/k8s. Raises ConfigError as they do."""
    return {path: render(config) for path, render in FILES.items()}


def _bootstrap(config: Config, extproc: str) -> str:
    return render_envoy(config, "0.0.0.0:10000", [extproc], "127.0.0.1:9901", None, probe="0.0.0.0:9902")


def _resources(config: Config, render: Callable[..., list[dict[str, Any]]]) -> str:
    return as_yaml(render(config, GATEWAY, [ROUTER], None), config)


class _Text(str):
    """Written as a block, so that a change of the dashboard has a readable diff."""


class _Dumper(yaml.SafeDumper):
    pass


_Dumper.add_representer(_Text, lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, "|"))


def _observe() -> str:
    rules = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "semantic-router", "namespace": NAMESPACE},
        "spec": yaml.safe_load((OBSERVE / "rules.yml").read_text(encoding="utf-8")),
    }
    dashboard = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {
            "name": "semantic-router-dashboard",
            "namespace": NAMESPACE,
            "labels": {"grafana_dashboard": "1"},  # the label that Grafana's sidecar looks for
        },
        "data": {"semantic-router.json": _Text((OBSERVE / "dashboard.json").read_text(encoding="utf-8"))},
    }
    written = yaml.dump_all([rules, dashboard], Dumper=_Dumper, sort_keys=False, width=10_000, allow_unicode=True)
    return f"# Written by `make manifests` from deploy/observe.\n{written}"


# Each rendered file, by its path under deploy/k8s. Raises ConfigError if a gateway cannot do what the policy says.
FILES: dict[str, Callable[[Config], str]] = {
    "base/envoy/bootstrap.yaml": lambda config: _bootstrap(config, "extproc:50051"),
    "components/observe/rendered.yaml": lambda _: _observe(),
    "overlays/sidecar/bootstrap.yaml": lambda config: _bootstrap(config, f"unix://{SOCKET}"),
    "overlays/istio/envoyfilter.yaml": lambda config: _resources(config, istio),
    "overlays/envoy-gateway/routes.yaml": lambda config: _resources(config, envoy_gateway),
}


if __name__ == "__main__":
    config, failed = load_config(INTENTS), False
    for path, render in FILES.items():
        try:
            (HERE / path).write_text(render(config))
            print(f"wrote deploy/k8s/{path}")
        except ConfigError as error:
            failed = True
            print(f"{error}\ndid not write deploy/k8s/{path}", file=sys.stderr)
    sys.exit(failed)
