"""`python -m extproc`."""

import sys

from extproc.cli.main import main

sys.exit(main())
