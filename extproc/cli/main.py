"""The command line: prepare | serve | health | check | explain | envoy | report | export | demo; and offline/'s."""

import argparse
import asyncio
import datetime
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from extproc.config.load import ConfigError, load_config
from extproc.encoder.protocols import EncoderError


def main(argv: list[str] | None = None) -> int:
    """Run one command; return 0, or 2 when the user's input is at fault."""
    args = _parser().parse_args(argv)
    # Model loaders draw progress bars and warn about hubs; a server's log is for its operator.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("extproc").setLevel(logging.INFO)
    try:
        run: int = args.run(args)
        return run
    except ConfigError as error:
        for problem in error.problems:
            print(f"{args.intents / problem.file}:{problem.line}: {problem.what}", file=sys.stderr)
        count = len(error.problems)
        print(f"{count} problem{'s' * (count != 1)} in {args.intents}", file=sys.stderr)
    except (EncoderError, OSError, ValueError) as error:
        print(f"extproc: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return 130
    return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="extproc", description="Semantic router for Envoy.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser("serve", help="answer Envoy's ext_proc calls")
    _intents_option(serve)
    serve.add_argument("--listen", default="127.0.0.1:50051", metavar="HOST:PORT|unix:///PATH")
    serve.add_argument(
        "--workers",
        type=_workers,
        default=1,
        metavar="N",
        help="processes, on consecutive ports from that of --listen; `auto` is one per core (default 1)",
    )
    serve.add_argument(
        "--health", metavar="HOST:PORT", help="gRPC health of all workers (default: the port before --listen's)"
    )
    serve.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)  # where a worker says that it serves
    serve.add_argument("--of", type=int, default=1, help=argparse.SUPPRESS)  # a worker's share of the machine
    serve.add_argument("--tls-cert", type=Path, metavar="FILE", help="mutual TLS: the server's certificate chain")
    serve.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    serve.add_argument("--tls-client-ca", type=Path, metavar="FILE", help="who signs the clients that may connect")
    serve.add_argument(
        "--ledger", metavar="FILE|postgresql://...", help="keep what every request cost, in SQLite or Postgres"
    )
    serve.add_argument("--ledger-days", type=float, default=90, metavar="DAYS", help="for so long (default 90)")
    serve.add_argument(
        "--gate",
        type=Path,
        metavar="DATA",
        help="refuse a reload that regresses on this traffic, as `extproc gate` does",
    )
    _limits_options(serve)
    serve.set_defaults(run=_serve)

    health = commands.add_parser("health", help="ask a router whether it serves; exit 0 or 1")
    health.add_argument("address", nargs="?", default="127.0.0.1:50051", metavar="HOST:PORT")
    health.set_defaults(run=_health)

    check = commands.add_parser("check", help="validate a folder of intents; exit 0 or 2")
    check.add_argument("intents", type=Path, metavar="DIR")
    check.set_defaults(run=_check)

    explain = commands.add_parser("explain", help="say where a prompt would go, and why")
    _intents_option(explain)
    explain.add_argument("prompt", nargs="?", help="the words; or give --request")
    explain.add_argument("--request", type=Path, metavar="FILE", help="a request body as JSON")
    explain.add_argument("--path", default=None, help="the API's path (default: told from the body's shape)")
    explain.add_argument("--header", action="append", default=[], metavar="NAME: VALUE")
    explain.add_argument("--json", action="store_true", help="print JSON")
    explain.set_defaults(run=_explain)

    prepare = commands.add_parser("prepare", help="convert the encoder once for this machine: routing gets faster")
    _intents_option(prepare)
    prepare.set_defaults(run=_prepare)

    envoy = commands.add_parser("envoy", help="print a complete Envoy bootstrap for the tiers")
    _intents_option(envoy)
    envoy.add_argument("--listen", default="0.0.0.0:10000", metavar="HOST:PORT")
    envoy.add_argument(
        "--extproc",
        action="append",
        metavar="HOST:PORT|unix:///PATH",
        help="where `extproc serve` listens; repeat for several (default 127.0.0.1:50051)",
    )
    envoy.add_argument("--workers", type=_workers, default=1, metavar="N", help="as given to each `extproc serve`")
    envoy.add_argument("--extproc-tls-cert", metavar="FILE", help="mutual TLS to it: Envoy's certificate chain")
    envoy.add_argument("--extproc-tls-key", metavar="FILE", help="its key")
    envoy.add_argument("--extproc-tls-ca", metavar="FILE", help="who signs the server's certificate")
    envoy.add_argument(
        "--extproc-tls-sds", metavar="DIR", help="where two files are written that Envoy reads these by"
    )
    envoy.add_argument("--admin", metavar="HOST:PORT", help="open Envoy's admin interface")
    envoy.add_argument(
        "--probe", metavar="HOST:PORT", help="answer /ready and /stats/prometheus there; with --admin"
    )
    envoy.add_argument("--otlp", metavar="HOST:PORT", help="send traces to this OTLP/gRPC endpoint")
    envoy.add_argument(
        "--cascade", choices=("priority-group", "composite", "none"), default="priority-group",
        help="how attempts climb: priority-group needs Envoy 1.40, composite 1.37; with none nothing climbs and no "
        "answer is judged: 1.36",
    )  # fmt: skip
    envoy.set_defaults(run=_envoy)

    report = commands.add_parser("report", help="what requests cost and kept, from the ledger")
    _ledger_options(report)
    report.add_argument("--by", choices=("cohort", "tier", "principal"), default="cohort")
    report.add_argument("--html", type=Path, metavar="FILE", help="write a page instead")
    report.add_argument("--json", action="store_true", help="print JSON")
    report.set_defaults(run=_report)

    export = commands.add_parser("export", help="print the ledger's outcomes as JSON lines: no text, no principals")
    _ledger_options(export)
    export.add_argument("--share", type=float, default=1.0, metavar="0..1", help="of the sessions (default all)")
    export.add_argument(
        "--requests",
        type=Path,
        metavar="FILE",
        help="print traffic (docs/evidence.md) instead: these requests, as for `convert openai-log`, by their `id`",
    )
    export.set_defaults(run=_export)

    demo = commands.add_parser("demo", help="real Envoy, sample upstreams, real prompts")
    _intents_option(demo, default=Path("intents"))
    demo.add_argument("--serve", action="store_true", help="keep it running and print a curl line")
    demo.set_defaults(run=_demo)

    _evidence_commands(commands)
    return parser


def _evidence_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    convert = commands.add_parser("convert", help="print another file's rows as labelled or recorded traffic")
    convert.add_argument("kind", choices=("openai-log",))
    _data_argument(convert, "JSON lines", name="file")
    convert.add_argument(
        "--where", action="append", default=[], metavar="MEMBER=VALUE", help="only lines with this; repeat for more"
    )
    convert.set_defaults(run=_convert)

    evaluate = commands.add_parser("eval", help="what these intents do to labelled or recorded traffic")
    _intents_option(evaluate)
    _data_argument(evaluate)
    evaluate.add_argument("--out", type=Path, metavar="REPORT.html", help="also as a page with plots")
    evaluate.add_argument("--json", type=Path, metavar="FILE", help="also as JSON, every number")
    evaluate.add_argument(
        "--perturb", action="store_true", help="also: what flips under typos, paraphrase and searched gadgets"
    )
    evaluate.add_argument("--seed", type=int, default=0, help="of the resampling, and of what is perturbed")
    evaluate.set_defaults(run=_eval)

    calibrate = commands.add_parser(
        "calibrate",
        help="fit each cohort's floors on labelled traffic, or its tier and settings on recorded outcomes",
    )
    _intents_option(calibrate)
    _data_argument(calibrate, "labelled JSON lines (docs/evidence.md)")
    calibrate.add_argument("--risk", type=float, default=0.05, help="share of accepted matches that may be wrong")
    calibrate.add_argument(
        "--target",
        metavar="quality=SHARE|cost=DOLLARS",
        help="choose tier, reasoning, score and cap by outcomes instead: at least this quality, or at most this "
        "cost per 1,000 requests",
    )
    calibrate.add_argument(
        "--cut",
        type=float,
        default=0.01,
        metavar="SHARE",
        help="of good answers that a cap on output tokens may cut",
    )
    calibrate.add_argument("--write", action="store_true", help="change the files; else only show the change")
    calibrate.add_argument(
        "--adapt", type=Path, metavar="DIR", help="try an encoder adapted to utterances and rows, too; kept in DIR"
    )
    calibrate.add_argument("--date", metavar="YYYY-MM-DD", help="of the evidence (default: today)")
    calibrate.add_argument("--seed", type=int, default=0, help="of the split into rows to fit and to report on")
    calibrate.set_defaults(run=_calibrate)

    diff = commands.add_parser("diff", help="what flips between two folders of intents on the same traffic")
    diff.add_argument("old", type=Path, metavar="OLD")
    diff.add_argument("intents", type=Path, metavar="NEW")
    _data_argument(diff)
    diff.add_argument("--show-text", action="store_true", help="show words of the requests that flip")
    diff.add_argument("--seed", type=int, default=0, help="of the resampling")
    diff.set_defaults(run=_diff)

    gate = commands.add_parser("gate", help="exit 1 if a cohort is worse than with the baseline")
    gate.add_argument("--baseline", type=Path, metavar="OLD", required=True)
    gate.add_argument("intents", type=Path, metavar="NEW")
    _data_argument(gate)
    _limits_options(gate)
    gate.add_argument("--seed", type=int, default=0, help="of the resampling")
    # `serve --gate` compares copies of its folder; the path of a model begins at the folder itself.
    gate.add_argument("--copies-of", type=Path, help=argparse.SUPPRESS)
    gate.set_defaults(run=_gate)

    suggest = commands.add_parser("suggest", help="propose intents for what falls out of scope; shows its words")
    _intents_option(suggest)
    _data_argument(suggest, "JSON lines (docs/evidence.md), labelled or not")
    suggest.add_argument(
        "--out", type=Path, metavar="DIR", help="also write each proposal to a file in this folder"
    )
    suggest.set_defaults(run=_suggest)


def _intents_option(parser: argparse.ArgumentParser, default: Path | None = None) -> None:
    parser.add_argument(
        "--intents",
        type=Path,
        metavar="DIR",
        default=default,
        required=default is None,
        help="folder with policy.yaml and one <intent>.yaml per cohort",
    )


def _data_argument(
    parser: argparse.ArgumentParser, what: str = "JSON lines (docs/evidence.md)", name: str = "data"
) -> None:
    told = f"{what}; gzipped if it ends in .gz; - for standard input"
    parser.add_argument(name, type=_file_of_lines, metavar=name.upper(), help=told)


def _file_of_lines(name: str) -> Path:
    return Path("/dev/stdin" if name == "-" else name)


def _limits_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--max-quality-drop", type=float, default=0.02, metavar="SHARE", help="0.02 is two points")
    parser.add_argument("--max-cost-rise", type=float, default=0.10, metavar="SHARE", help="0.10 is a tenth")


def _limits(args: argparse.Namespace) -> tuple[float, float]:
    limits = args.max_quality_drop, args.max_cost_rise
    if not (0 <= limits[0] < 1 and limits[1] >= 0):
        raise ValueError(
            "--max-quality-drop and --max-cost-rise are shares, from 0 up, and no whole quality may drop: "
            "0.02 is two points"
        )
    return limits


def _ledger_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--ledger", metavar="FILE|postgresql://...", required=True, help="as given to `extproc serve`"
    )
    parser.add_argument("--since", default="24h", metavar="SPAN", help="how far back: 30m, 24h, 7d (default 24h)")


def _serve(args: argparse.Namespace) -> int:
    from extproc.accounting.store import Store
    from extproc.config.gate import Gate
    from extproc.serving.listening import TlsFiles
    from extproc.serving.server import Serving, serve
    from extproc.serving.workers import health_address, supervise, worker_addresses

    files = _together(args, "tls_cert", "tls_key", "tls_client_ca")
    gate = Gate(args.gate, *_limits(args)) if args.gate is not None else None
    if args.workers == 1:
        tls = TlsFiles(*files) if files else None
        kept = Store(args.ledger, args.ledger_days) if args.ledger is not None else None
        asyncio.run(serve(Serving(args.intents, args.listen, tls, kept, args.of, gate, args.ready_fd)))
        return 0
    addresses = worker_addresses(args.listen, args.workers)
    own = [sys.executable, "-m", "extproc", *sys.argv[1:], "--workers", "1", "--of", str(args.workers)]
    commands = {address: [*own, "--listen", address] for address in addresses}
    return asyncio.run(supervise(commands, args.health or health_address(args.listen)))


def _workers(given: str) -> int:
    from extproc.serving.workers import cores

    count = cores() if given == "auto" else int(given)
    if count < 1:
        raise ValueError("there must be one worker at least")
    return count


def _health(args: argparse.Namespace) -> int:
    from extproc.serving.health import serves

    serving = serves(args.address)
    print(f"{args.address}: {'serving' if serving else 'not serving'}")
    return 0 if serving else 1


def _check(args: argparse.Namespace) -> int:
    from extproc.acceptance.verdict import needs_whole_answer
    from extproc.config.compile import compile_snapshot
    from extproc.config.load import in_configmap
    from extproc.encoder.backends import load_encoder
    from extproc.routing.centroid_file import CENTROIDS_FILE

    config = load_config(args.intents)
    snapshot = compile_snapshot(config, load_encoder(config.policy.encoder.model))
    cohorts = snapshot.policy.cohorts.values()
    uncalibrated = [cohort.name for cohort in cohorts if cohort.evidence is None]
    stale = [cohort.name for cohort in cohorts if cohort.evidence is not None and not cohort.calibrated]
    changed = [c.name for c in cohorts if c.chosen is not None and not c.chosen.holds(config.policy.tiers)]
    whole = {c.name: needs_whole_answer(c.accept) for c in cohorts if c.stream == "early"}
    late = [f"{name} ({', '.join(rules)})" for name, rules in whole.items() if rules]
    print(f"{args.intents}: {len(cohorts)} cohorts, {len(config.policy.tiers)} tiers, revision {snapshot.revision}")
    if config.fitted is not None:
        raw = (args.intents / CENTROIDS_FILE).read_bytes()
        print(f"{CENTROIDS_FILE}: {config.fitted.header}; {in_configmap(args.intents, raw)}")
    if uncalibrated:
        print(f"uncalibrated (no evidence for their floors): {', '.join(uncalibrated)}")
    if stale:
        print(f"stale (utterances or centroids changed since `extproc calibrate`): {', '.join(stale)}")
    if changed:
        print(f"stale (models changed since tier and settings were chosen): {', '.join(changed)}")
    if late:
        print(
            f"long streams pass rules that need the whole answer (`stream: buffer` holds them): {', '.join(late)}"
        )
    return 0


def _prepare(args: argparse.Namespace) -> int:
    try:
        from extproc.encoder.backends import threads_for
        from extproc.encoder.prepare import prepare

        config = load_config(args.intents)
        texts = [text for intent in config.intents for text in intent.utterances]
        choice = prepare(config.policy.encoder.model, texts, time.strftime("%Y-%m-%d"), threads_for(1))
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}: conversion has needs of its own: pip install 'envoy-semantic-router[prepare]'"
        ) from error
    print("back end          16 tokens   64 tokens   cosine with fp32")
    for found in choice.candidates:
        mark = "   chosen" if found == choice.chosen else ""
        print(f"{found.name:<16}{found.ms_16:>8.1f} ms{found.ms_64:>9.1f} ms{found.agreement:>19.4f}{mark}")
    return 0


def _explain(args: argparse.Namespace) -> int:
    from extproc.cli.explain import explain

    if (args.prompt is None) == (args.request is None):
        raise ValueError('give either a prompt or --request FILE: extproc explain --intents DIR "..."')
    body = args.request.read_bytes() if args.request is not None else None
    print(explain(args.intents, args.prompt, body, args.path, args.header, args.json))
    return 0


def _envoy(args: argparse.Namespace) -> int:
    from extproc.envoy.bootstrap import render_envoy
    from extproc.envoy.tls import ClientTls, write_secrets
    from extproc.serving.workers import worker_addresses

    config = load_config(args.intents)
    for flag in ("listen", "admin", "probe", "otlp", "extproc"):
        given = getattr(args, flag) or []
        for address in [given] if isinstance(given, str) else given:
            host, _, port = address.rpartition(":")
            if flag == "extproc" and address.startswith("unix:///"):
                continue
            if not host or not port.isdecimal():
                raise ValueError(f"--{flag} {address}: give HOST:PORT, as in 127.0.0.1:50051")
    if args.probe and not args.admin:
        raise ValueError("--probe shows pages of the admin interface: give --admin too, as in 127.0.0.1:9901")
    servers = args.extproc or ["127.0.0.1:50051"]
    extproc = [address for server in servers for address in worker_addresses(server, args.workers)]
    files = _together(args, "extproc_tls_cert", "extproc_tls_key", "extproc_tls_ca", "extproc_tls_sds")
    tls = ClientTls(*files) if files else None
    if tls is not None:
        write_secrets(tls, extproc)
    rendered = render_envoy(
        config, args.listen, extproc, args.admin, args.otlp, tls=tls, probe=args.probe, cascade=args.cascade
    )
    print(rendered, end="")
    return 0


def _together(args: argparse.Namespace, *names: str) -> list[Any]:
    """The values of options that only make sense together; [] where none is given."""
    given = [getattr(args, name) for name in names if getattr(args, name) is not None]
    if given and len(given) < len(names):
        raise ValueError(f"give all of {', '.join('--' + name.replace('_', '-') for name in names)}, or none")
    return given


def _report(args: argparse.Namespace) -> int:
    import msgspec

    from extproc.accounting.render import html_of, text_of
    from extproc.accounting.report import read_report, seconds_of

    report = read_report(args.ledger, seconds_of(args.since), args.by)
    if args.html is not None:
        args.html.write_text(html_of(report), encoding="utf-8")
    else:
        print(msgspec.json.encode(report).decode() if args.json else text_of(report), end="\n" if args.json else "")
    return 0


def _export(args: argparse.Namespace) -> int:
    from extproc.accounting.export import JoinCounts, as_traffic, export
    from extproc.accounting.report import seconds_of

    if not 0 <= args.share <= 1:
        raise ValueError(f"--share {args.share:g}: give a part from 0 to 1, as in 0.1")
    lines, count = export(args.ledger, seconds_of(args.since), args.share), JoinCounts()
    if args.requests is not None:
        from extproc.cli.evidence import requests_by_id

        lines = as_traffic(lines, requests_by_id(args.requests), count)
    for line in lines:
        sys.stdout.buffer.write(line)
    if args.requests is not None:
        print(f"{args.requests}: {count.rows} rows joined, {count.without} without a request", file=sys.stderr)
    return 0


def _demo(args: argparse.Namespace) -> int:
    try:
        from extproc.demo.demo import run_demo
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error}: the demo's own needs are missing: pip install 'envoy-semantic-router[demo]'"
        ) from error

    return run_demo(args.intents, args.serve)


def _convert(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_convert

    where = dict(condition.partition("=")[::2] for condition in args.where)
    return run_convert(args.kind, args.file, where)


def _eval(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_eval

    for path in (args.out, args.json):  # before minutes of work, not after
        if path is not None and not path.absolute().parent.is_dir():
            raise ValueError(f"{path}: its folder does not exist")
    if args.out is not None and args.out.suffix == ".json":
        raise ValueError(f"--out {args.out}: it is an HTML page; for the same as JSON give --json {args.out}")
    return run_eval(args.intents, args.data, args.out, args.json, args.seed, args.perturb)


def _calibrate(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_calibrate, run_choose
    from extproc.evidence.fit.target import parse_target

    if not 0 < args.risk < 1:
        raise ValueError(f"--risk {args.risk:g}: give a share above 0 and below 1, as in 0.05")
    try:
        date = datetime.date.fromisoformat(args.date) if args.date else datetime.date.today()
    except ValueError as error:
        raise ValueError(f"--date {args.date}: give a day as YYYY-MM-DD: {error}") from error
    day = date.isoformat()
    if args.target is not None:
        if args.adapt is not None:
            raise ValueError("--adapt goes with labelled rows, --target with outcomes: calibrate once with each")
        if not 0 < args.cut < 1:
            raise ValueError(f"--cut {args.cut:g}: give a share above 0 and below 1, as in 0.01")
        return run_choose(args.intents, args.data, parse_target(args.target), args.cut, day, args.seed, args.write)
    return run_calibrate(args.intents, args.data, args.risk, day, args.seed, args.write, args.adapt)


def _diff(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_diff

    _check_baseline(args, args.old)
    return run_diff(args.old, args.intents, args.data, args.seed, args.show_text)


def _gate(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_gate

    _check_baseline(args, args.baseline)
    return run_gate(args.baseline, args.intents, args.data, *_limits(args), args.seed, args.copies_of)


def _suggest(args: argparse.Namespace) -> int:
    from extproc.cli.evidence import run_suggest

    return run_suggest(args.intents, args.data, args.out)


def _check_baseline(args: argparse.Namespace, baseline: Path) -> None:
    """Mistakes in the baseline are told with its own paths."""
    new, args.intents = args.intents, baseline
    load_config(baseline)
    args.intents = new
