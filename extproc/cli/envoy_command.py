"""The command `envoy`: it prints Envoy's configuration, for a separate Envoy or for a gateway in Kubernetes."""

import argparse
import re
from typing import TYPE_CHECKING

from extproc.cli.options import (
    add_command,
    all_or_none,
    intents_option,
    parse_address,
    parse_gateway,
    parse_host,
    parse_server_address,
    parse_workers,
)

if TYPE_CHECKING:
    from extproc.cli.options import Commands
    from extproc.config.load import Config
    from extproc.envoy.unsupported import Cascade

# The versions that can be rendered for, and how each sends a request to the next tier.
VERSIONS: "dict[str, dict[str, Cascade]]" = {
    "envoy": {
        "1.36": "none", "1.37": "composite", "1.38": "composite", "1.39": "composite", "1.40": "priority-group",
    },
    "envoy-gateway": {"1.7": "composite", "1.8": "composite", "1.9": "composite"},
    "istio": {"1.29": "priorities", "1.30": "priorities"},
}  # fmt: skip
# The parts of the configuration that a gateway in Kubernetes sets itself.
_OWN_ENVOY = (
    "listen", "admin", "probe", "extproc_tls_cert", "extproc_tls_key", "extproc_tls_ca", "extproc_tls_sds",
)  # fmt: skip


def add_envoy(commands: "Commands") -> None:
    """Add the command."""
    envoy = add_command(
        commands, "envoy", _envoy,
        "Print Envoy's configuration for the tiers in policy.yaml. It is a complete bootstrap, or resources for a "
        "gateway in Kubernetes. Render it again after a change of tiers, timeouts or headers in rules.",
    )  # fmt: skip
    intents_option(envoy)
    envoy.add_argument(
        "--listen",
        type=parse_address,
        metavar="HOST:PORT",
        help="address where Envoy accepts clients (default: 0.0.0.0:10000)",
    )
    envoy.add_argument(
        "--extproc",
        type=parse_server_address,
        action="append",
        metavar="HOST:PORT|unix:///PATH",
        help="address of the router, as in `extproc serve --listen`; repeat it for several routers "
        "(default: 127.0.0.1:50051, or the Service of the router for a gateway)",
    )
    envoy.add_argument(
        "--workers",
        type=parse_workers,
        default=1,
        metavar="N",
        help="number of processes of each router, as in `extproc serve --workers` (default: %(default)s)",
    )
    envoy.add_argument(
        "--extproc-tls-cert",
        metavar="FILE",
        help="certificate chain that Envoy shows to the router (PEM, path as Envoy sees it); turns on mutual TLS, "
        "with --extproc-tls-key, --extproc-tls-ca and --extproc-tls-sds",
    )
    envoy.add_argument(
        "--extproc-tls-key", metavar="FILE", help="private key of the certificate in --extproc-tls-cert (PEM)"
    )
    envoy.add_argument(
        "--extproc-tls-ca", metavar="FILE", help="CA certificate used to verify the router's certificate (PEM)"
    )
    envoy.add_argument(
        "--extproc-tls-sds",
        metavar="DIR",
        help="folder where this command writes two files (SDS) through which Envoy reads and reloads the "
        "certificate, key and CA",
    )
    envoy.add_argument(
        "--admin",
        type=parse_address,
        metavar="HOST:PORT",
        help="address of Envoy's admin interface (default: no admin interface)",
    )
    envoy.add_argument(
        "--probe",
        type=parse_address,
        metavar="HOST:PORT",
        help="address that serves only /ready and /stats/prometheus; needs --admin (default: none)",
    )
    envoy.add_argument(
        "--otlp",
        type=parse_address,
        metavar="HOST:PORT",
        help="OTLP/gRPC endpoint that Envoy sends traces to (default: no traces)",
    )
    envoy.add_argument(
        "--for",
        dest="target",
        choices=tuple(VERSIONS),
        default="envoy",
        help="the owner of Envoy: envoy runs by itself and gets a bootstrap; envoy-gateway and istio get resources "
        "for Kubernetes (default: %(default)s)",
    )
    envoy.add_argument(
        "--version",
        metavar="X.Y",
        help="version of the name in --for: "
        + "; ".join(f"{target} {', '.join(versions)}" for target, versions in VERSIONS.items())
        + " (default: the last). Envoy 1.36 routes only: no judged answers, no escalation, no failover",
    )
    envoy.add_argument(
        "--host",
        type=parse_host,
        metavar="NAME",
        help="host that clients send requests for LLMs to; required with --for envoy-gateway or istio, which leave "
        "other hosts of the gateway alone",
    )
    envoy.add_argument(
        "--gateway",
        type=parse_gateway,
        metavar="NAMESPACE/NAME/LISTENER",
        help="with --for envoy-gateway or istio: the gateway, and its listener for the host "
        "(default: semantic-router/llm/http)",
    )


def _envoy(args: argparse.Namespace) -> int:
    from extproc.config.load import ConfigError, load_config
    from extproc.envoy.bootstrap import render_envoy
    from extproc.envoy.tls import ClientTls, write_secrets

    given = re.fullmatch(r"v?(\d+\.\d+)(\.\d+)?", args.version or "")
    version = (given[1] if given is not None else args.version) or [*VERSIONS[args.target]][-1]
    if version not in VERSIONS[args.target]:
        known = ", ".join(VERSIONS[args.target])
        raise ValueError(
            f"--version {version}: expected one of {known} for {args.target}: give the last one if yours is newer"
        )
    cascade = VERSIONS[args.target][version]
    config = load_config(args.intents)
    if config.broken:  # Envoy has to know the tiers that every app may use
        raise ConfigError([problem for app in config.broken.values() for problem in app.problems], args.intents)
    if args.target != "envoy":
        return _for_gateway(args, config, version)
    for name in ("host", "gateway"):
        if getattr(args, name) is not None:
            raise ValueError(
                f"--{name} is for a gateway in Kubernetes: give --for envoy-gateway or --for istio, too"
            )
    if args.probe and not args.admin:
        raise ValueError("--probe shows pages of the admin interface: give --admin too, as in 127.0.0.1:9901")
    endpoints = _routers(args, "127.0.0.1:50051")
    files = all_or_none(args, "extproc_tls_cert", "extproc_tls_key", "extproc_tls_ca", "extproc_tls_sds")
    tls = ClientTls(*files) if files else None
    if tls is not None:
        write_secrets(tls, endpoints)
    listen = args.listen or "0.0.0.0:10000"
    rendered = render_envoy(
        config, listen, endpoints, args.admin, args.otlp, tls=tls, probe=args.probe, cascade=cascade
    )
    print(rendered, end="")
    return 0


def _for_gateway(args: argparse.Namespace, config: "Config", version: str) -> int:
    from extproc.envoy.bootstrap import as_yaml
    from extproc.envoy.envoy_gateway import envoy_gateway
    from extproc.envoy.istio import istio
    from extproc.envoy.shared import ROUTER, Gateway

    if args.host is None:
        raise ValueError(
            f"--for {args.target} needs the host that clients send to: give --host, as in llm.example.com"
        )
    for name in _OWN_ENVOY:
        if getattr(args, name) is not None:
            option = "--" + name.replace("_", "-")
            raise ValueError(f"{option} is for --for envoy: remove it, as the gateway has its own setting")
    namespace, name, listener = args.gateway or ("semantic-router", "llm", "http")
    gateway = Gateway(namespace, name, listener, args.host)
    render = envoy_gateway if args.target == "envoy-gateway" else istio
    documents = render(config, gateway, _routers(args, ROUTER), args.otlp)
    print(as_yaml(documents, config, f"# For {args.target} {version} and the host {args.host}.\n"), end="")
    return 0


def _routers(args: argparse.Namespace, default: str) -> list[str]:
    """Return the addresses of all processes of the routers."""
    from extproc.serving.workers import worker_addresses

    return [endpoint for router in args.extproc or [default] for endpoint in worker_addresses(router, args.workers)]
