"""`extproc serve` with an encoder that follows the file FAULTY_ENCODER: it works, raises or is slow."""

import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[2]))

from extproc.cli import main as cli
from extproc.encoder.features import FeatureEncoder
from extproc.encoder.protocols import Encoder, Vectors
from extproc.serving import server  # from the repository, in any working directory

# Longer than the deadline of the tests that use this, and short enough to end soon.
SLOW_S = 3.0


class Faulty:
    """A sentence encoder that fails on demand."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder

    def encode(self, texts: Sequence[str]) -> Vectors:
        word = Path(os.environ["FAULTY_ENCODER"]).read_text()
        if word == "raise":
            raise RuntimeError("the model broke")
        if word == "slow":
            time.sleep(SLOW_S)
        return self._encoder.encode(texts)


if __name__ == "__main__":
    replaced: Any = server
    load = replaced.load_encoder
    replaced.load_encoder = lambda model, workers: FeatureEncoder(Faulty(load(model, workers).sentences))
    sys.exit(cli.main())
