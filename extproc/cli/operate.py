"""The commands that run the router and the parts around it: `serve`, `prepare`, `envoy`, `demo`."""

import argparse
import asyncio
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from extproc.cli.console import add_console
from extproc.cli.envoy_command import add_envoy
from extproc.cli.health import add_health_commands
from extproc.cli.options import (
    add_command,
    all_or_none,
    explore_options,
    intents_option,
    limits_options,
    parse_days,
    parse_server_address,
    parse_workers,
)
from extproc.cli.rollout import add_rollout

if TYPE_CHECKING:
    from extproc.cli.options import Commands


def add_commands(commands: "Commands") -> None:
    """Add the commands of this group."""
    _add_serve(commands)
    add_health_commands(commands)
    prepare = add_command(
        commands, "prepare", _prepare,
        "Convert the encoder to the fastest form for this machine. Do this once for each machine or image: without "
        "it the router works, but slower.",
    )  # fmt: skip
    intents_option(prepare)
    prepare.add_argument(
        "--portable",
        action="store_true",
        help="prepare for other machines, as in an image: any x86-64 CPU with AVX2, without torch and without the "
        "package of the model (default: the fastest form on this machine)",
    )
    add_envoy(commands)
    add_rollout(commands)
    add_console(commands)
    demo = add_command(
        commands, "demo", _demo, "Start Envoy, the router and sample model servers, and send them real prompts."
    )
    intents_option(demo, default=Path("intents"))
    demo.add_argument(
        "--serve", action="store_true", help="keep everything running after the prompts, and print a curl command"
    )
    demo.add_argument(
        "--out",
        type=Path,
        metavar="DIR",
        help="with --serve: keep the intents, a ledger and the requests in this folder, and let simulated users "
        "ask, rate and label until you stop",
    )


def _add_serve(commands: "Commands") -> None:
    serve = add_command(
        commands, "serve", _serve,
        "Run the router: answer Envoy's ext_proc calls. Edits of the YAML take effect while it runs.",
    )  # fmt: skip
    intents_option(serve)
    serve.add_argument(
        "--listen",
        type=parse_server_address,
        default="127.0.0.1:50051",
        metavar="HOST:PORT|unix:///PATH",
        help="address that Envoy connects to (default: %(default)s)",
    )
    serve.add_argument(
        "--workers",
        type=parse_workers,
        default=1,
        metavar="N",
        help="number of router processes, on consecutive ports from the port of --listen; `auto` is one for each "
        "core (default: %(default)s)",
    )
    serve.add_argument(
        "--health",
        type=parse_server_address,
        metavar="HOST:PORT",
        help="address of the gRPC health service for all workers together; used with two or more workers "
        "(default: the port before the port of --listen)",
    )
    serve.add_argument(
        "--tls-cert",
        type=Path,
        metavar="FILE",
        help="certificate chain of the router (PEM); turns on mutual TLS, with --tls-key and --tls-client-ca",
    )
    serve.add_argument(
        "--tls-key", type=Path, metavar="FILE", help="private key of the certificate in --tls-cert (PEM)"
    )
    serve.add_argument(
        "--tls-client-ca",
        type=Path,
        metavar="FILE",
        help="CA certificate used to verify clients (PEM); no other client can connect",
    )
    serve.add_argument(
        "--ledger",
        metavar="FILE|postgresql://...",
        help="store the outcome, tokens and cost of every request in this SQLite file or Postgres database "
        "(default: no ledger)",
    )
    serve.add_argument(
        "--ledger-days",
        type=parse_days,
        default=90,
        metavar="DAYS",
        help="delete ledger rows older than this many days (default: %(default)s)",
    )
    serve.add_argument(
        "--gate",
        type=Path,
        metavar="DATA",
        help="compare every reload with the running configuration on the traffic in DATA, as `extproc gate` does, "
        "and refuse a reload that is worse (default: no comparison)",
    )
    limits_options(serve, "with --gate: ")
    serve.add_argument(
        "--golden",
        type=Path,
        metavar="DATA",
        help="route the labelled rows in DATA after every reload and once an hour, while no client waits, and "
        "report those whose cohort is not their label (default: none)",
    )
    explore_options(serve)


def _serve(args: argparse.Namespace) -> int:
    from extproc.cli.worker import Job, run_job
    from extproc.config.gate import check_data
    from extproc.serving.workers import check_ports, health_address, supervise, worker_addresses

    files = all_or_none(args, "tls_cert", "tls_key", "tls_client_ca")
    if args.explore and args.ledger is None:
        raise ValueError("--explore records the answers of second tiers in the ledger: give --ledger, too")
    if args.gate is not None:
        check_data(args.gate)
    if args.golden is not None:
        from extproc.cli.golden import read_golden

        read_golden(args.golden)  # a mistake in it shows before anything is served
    job = Job(
        intents=str(args.intents),
        listen=args.listen,
        tls=tuple(map(str, files)),
        ledger=args.ledger,
        ledger_days=args.ledger_days,
        gate=str(args.gate) if args.gate is not None else None,
        max_quality_drop=args.max_quality_drop,
        max_cost_rise=args.max_cost_rise,
        workers=args.workers,
        explore=args.explore,
        explore_url=args.explore_url,
        golden=str(args.golden) if args.golden is not None else None,
    )
    if args.workers == 1:
        return run_job(job)
    addresses, health = worker_addresses(args.listen, args.workers), args.health or health_address(args.listen)
    check_ports(addresses, health)
    commands = {at: [sys.executable, "-m", "extproc.cli.worker", job.at(at).as_argument()] for at in addresses}
    return asyncio.run(supervise(commands, health))


def _prepare(args: argparse.Namespace) -> int:
    from extproc.config.load import load_config

    try:
        from extproc.config.compile import encode_texts, matching, texts_of
        from extproc.encoder.backends import load_encoder, threads_for
        from extproc.encoder.prepare import prepare
        from extproc.encoder.vector_file import folder_of

        config = load_config(args.intents)
        model = config.policy.encoder.model
        choice = prepare(model, texts_of(config), time.strftime("%Y-%m-%d"), threads_for(1), args.portable)
        encoder = load_encoder(model)
        # Stores the vectors and the fit: a start in a read-only image has them.
        matching(config, *encode_texts(config, encoder), folder_of(encoder))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}: `extproc prepare` needs more packages: pip install 'envoy-semantic-router[prepare]'"
        ) from error
    print("back end          16 tokens   64 tokens   cosine with fp32")
    for candidate in choice.candidates:
        times = f"{candidate.ms_16:>8.1f} ms{candidate.ms_64:>9.1f} ms"
        mark = "   chosen" if candidate == choice.chosen else ""
        print(f"{candidate.name:<16}{times}{candidate.agreement:>19.4f}{mark}")
    return 0


def _demo(args: argparse.Namespace) -> int:
    try:
        from extproc.demo.demo import run_demo
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}: `extproc demo` needs more packages: pip install 'envoy-semantic-router[demo]'"
        ) from error

    if args.out is not None and not args.serve:
        raise ValueError("--out keeps the files of a demo that keeps serving: give --serve, too")
    return run_demo(args.intents, args.serve, args.out)
