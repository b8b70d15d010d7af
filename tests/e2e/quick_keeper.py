"""`extproc serve` that maintains its ledger every half second."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from extproc.accounting import keeper
from extproc.cli import main as cli  # from the repository, in any working directory

if __name__ == "__main__":
    keeper._INTERVAL_S = 0.5
    sys.exit(cli.main())
