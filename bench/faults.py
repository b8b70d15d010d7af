"""The fault matrix with long faults: `python -m bench.faults [--seconds 30] [--clients 60] [--fault NAME]`.

The driver is that of tests/e2e/test_faults.py. The exit status is 1 if a client lost an answer, or if Envoy, the
routing or the cascade did not recover. It is also 1 if a request without a fault was not routed.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path


def main() -> int:
    """Print the table. Return 1 if an answer was lost or something did not recover."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30, help="length of one fault")
    parser.add_argument("--clients", type=int, default=60, help="concurrent clients")
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
    driver = importlib.import_module("test_faults")
    help_fault = "a fault of the table to run; can be given several times (default: all)"
    parser.add_argument("--fault", action="append", choices=list(driver.FAULTS), help=help_fault)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            rows = driver.fill(
                Path(folder), args.seconds, args.clients, lambda row: print(row.fault, "...", flush=True),
                args.fault or list(driver.FAULTS),
            )  # fmt: skip
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print(driver.table(rows))
    undecided = sum(row.unrouted for row in rows if row.fault == "none")
    if undecided:
        print(f"FAILED: without a fault, {undecided} requests were not routed", file=sys.stderr)
    return 1 if driver.lost(rows) or undecided else 0


if __name__ == "__main__":
    sys.exit(main())
