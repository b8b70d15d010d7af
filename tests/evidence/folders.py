"""The good folder of intents with a floor for every cohort."""

import shutil
from pathlib import Path

CONFIGS = Path(__file__).parents[1] / "configs"


def good_folder(target: Path, floor: float) -> Path:
    """Copy the good folder to `target`. -1 accepts every match, and 0.2 rejects a text that shares no word."""
    shutil.copytree(CONFIGS / "good", target)
    for name in ("billing", "cooking"):
        with (target / f"{name}.yaml").open("a") as file:
            file.write(f"floor: {floor}\n")
    return target
