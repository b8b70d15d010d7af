"""`extproc demo`: send real prompts through the real Envoy, and print which tiers serve them."""

import contextlib
import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from extproc.demo.cascade_table import show_cascade
from extproc.demo.processes import StackError
from extproc.demo.routing_table import show_routing
from extproc.demo.screen import shortened
from extproc.demo.stack import Stack, running
from extproc.demo.users import Users

_REQUESTS = "requests.jsonl"


def run_demo(intents: Path, keep_serving: bool, out: Path | None = None) -> int:
    """Run the demo. Return 0 if the expected tier served every prompt, otherwise 1.

    With `out`, its files stay there, with a ledger, and simulated users ask until it is stopped. Raises ValueError,
    or StackError if a process or a request fails.
    """
    options = () if out is None else ("--ledger", str(_prepared(out) / "ledger.sqlite"))
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    print("starting the sample model servers, the router and Envoy ...", flush=True)
    began = time.monotonic()
    with running(intents, folder=out, options=options) as stack:
        print(f"ready after {time.monotonic() - began:.1f} s", flush=True)
        try:
            routed, escalated = show_routing(stack, intents), show_cascade(stack)
        except StackError as error:
            raise StackError(_cause(stack, error)) from error
        _show_next(intents, keep_serving)
        if keep_serving:
            users = contextlib.nullcontext() if out is None else Users(stack.port, stack.intents, out / _REQUESTS)
            with users:
                _keep_serving(stack, out)
    wrong = [row.prompt for row in routed if not row.as_decided]
    wrong += [row.prompt for row in escalated if not row.as_expected]
    return _status(wrong)


def _prepared(out: Path) -> Path:
    """Create the folder. Raises ValueError if it has the files of an earlier demo."""
    if (out / "intents").exists():
        raise ValueError(f"{out} has the files of an earlier demo: remove it, or name another folder")
    out.mkdir(parents=True, exist_ok=True)
    return out


def _show_next(intents: Path, keep_serving: bool) -> None:
    program = sys.argv[0] if Path(sys.argv[0]).name == "extproc" else f"{sys.executable} -m extproc"
    folder = shlex.quote(str(intents))
    steps = {
        "See why a prompt goes where it goes:": f'{program} explain --intents {folder} "Prove that 17 is prime."',
        f"Change an intent or a tier in {intents}/, then check the folder:": f"{program} check {folder}",
    }
    if not keep_serving:
        steps["Keep Envoy running, and send it your own requests:"] = f"{program} demo --intents {folder} --serve"
    print("\nWhat to do next\n")
    for step, command in steps.items():
        print(f"  {step}\n    {command}")
    print("  Use your own Envoy and your own model servers: read README.md.", flush=True)


def _keep_serving(stack: Stack, out: Path | None) -> None:
    if out is not None:
        print(
            f"\nSimulated users ask, rate and label now. {out} has the intents, the ledger and the requests.\n"
            "The next steps are in docs/guides/learn.md.",
            flush=True,
        )
    print(
        f"""
Envoy listens on {stack.url}. Send it a request:

  curl -si {stack.url}/v1/chat/completions -H 'content-type: application/json' \\
    -d '{{"model": "auto", "messages": [{{"role": "user", "content": "Prove that 17 is prime."}}]}}'

You can edit the intents that it serves in {stack.intents}; the router reloads them.
Press Ctrl-C to stop.""",
        flush=True,
    )
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        print("stopping", file=sys.stderr)


def _status(wrong: Sequence[str]) -> int:
    if wrong:
        prompts = ", ".join(f'"{shortened(prompt)}"' for prompt in wrong)
        print(f"the demo failed: another tier than the expected one served {prompts}", file=sys.stderr)
    return 1 if wrong else 0


def _cause(stack: Stack, error: StackError) -> str:
    for name, process, log in (("the router", stack.router, "router.log"), ("Envoy", stack.envoy, "envoy.err")):
        if process is not None and process.poll() is not None:
            return f"{name} ended with status {process.returncode} during the demo. Its log: {stack.folder / log}"
    return f"{error}. The logs are in {stack.folder}"
