"""Load with faults, in its long form: `python -m bench.faults [--seconds 300] [--clients 150]`.

The driver is that of tests/e2e/test_load.py; the exit status is 1 if any answer was wrong, mixed, or cut and
looked complete, or if Envoy did not live.
"""

import argparse
import importlib
import sys
import tempfile
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=300)
    parser.add_argument("--clients", type=int, default=150)
    given = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "e2e"))
    driver = importlib.import_module("test_load")
    print(
        f"{given.clients} clients for {given.seconds:.0f} s, the router stalled and killed in turn ...", flush=True
    )
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        try:
            driver.run(Path(folder), given.seconds, given.clients)
        except AssertionError as error:
            print(f"FAILED: {error}", file=sys.stderr)
            return 1
    print("Envoy is alive, no answer was wrong.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
