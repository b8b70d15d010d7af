"""The fault tables: `python -m bench.faults [--form "envoy-gateway 1.9"] [--seconds 30] [--fault NAME]`.

The first table has the faults of the first tier. The second has the faults of the router, which are long here. The
drivers are those of tests/e2e/test_conformance.py and test_faults.py. The exit status is 1 if a client lost an
answer, or if Envoy, the routing or the cascade did not recover. It is also 1 if a request without a fault was not
routed.
"""

import argparse
import asyncio
import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN = "envoy 1.40"
# The host that the drivers send to.
_HOST = "router"


def main() -> int:
    """Print the tables. Return 1 if an answer was lost or something did not recover."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="length of one fault of the router")
    parser.add_argument("--clients", type=int, default=60, help="concurrent clients")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
    driver, gateways = importlib.import_module("test_faults"), importlib.import_module("test_gateways")
    help_fault = "a fault of the router to run; can be given several times (default: all)"
    parser.add_argument("--fault", action="append", choices=list(driver.FAULTS), help=help_fault)
    parser.add_argument("--form", choices=(OWN, *gateways.FORMS), default=OWN, help="what runs Envoy")
    args = parser.parse_args()
    start = None if args.form == OWN else _starter(gateways, args.form)
    print(f"{args.form}: faults of the first tier\n\n{_conformance(start)}\n\n{args.form}: faults of the router\n")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            rows = driver.fill(
                Path(folder), args.seconds, args.clients, lambda row: print(row.fault, "...", flush=True),
                args.fault or list(driver.FAULTS), start,
            )  # fmt: skip
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print(driver.table(rows))
    undecided = sum(row.unrouted for row in rows if row.fault == "none")
    if undecided:
        print(f"FAILED: without a fault, {undecided} requests were not routed", file=sys.stderr)
    return 1 if driver.lost(rows) or undecided else 0


def _starter(gateways: Any, form: str) -> Callable[[Any], None]:
    """Return a function that starts the Envoy of a gateway on a stack."""

    def start(stack: Any) -> None:
        bootstrap = gateways.bootstrap_for(form, stack, {}, host=_HOST)
        stack.start_envoy(bootstrap, binary=gateways.binary_of(gateways.FORMS[form]))

    return start


def _conformance(start: Callable[[Any], None] | None) -> Any:
    """Return the table with the faults of the first tier."""
    driver, upstream = importlib.import_module("test_conformance"), importlib.import_module("faulty_upstream")
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        how = {} if start is None else {"start_envoy": start}
        running = upstream.running_faulty(Path(folder), driver.COHORTS, driver.TIMEOUTS, **how)
        with running as (stack, prompts):
            return asyncio.run(driver.whole_table(stack, prompts, driver.CHAT))


if __name__ == "__main__":
    sys.exit(main())
