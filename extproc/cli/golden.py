"""The rows of `serve --golden`: labelled traffic, as the router gets it."""

from pathlib import Path

from msgspec import UNSET

from extproc.evidence.data.traffic import read_traffic, reveal_all
from extproc.serving.golden import GoldenRow


def read_golden(path: Path) -> list[GoldenRow]:
    """Read a file of traffic in which every row has a label. Raises OSError, or ValueError with the line."""
    traffic = read_traffic(path)
    revealed, bad = reveal_all(traffic.rows)
    for unusable in (*traffic.bad, *bad):
        raise ValueError(f"{path}:{unusable.line}: {unusable.what}")
    rows = []
    for row, label in zip(traffic.rows, revealed, strict=True):
        if label is None or label.intent is UNSET:
            raise ValueError(f"{path}:{row.line}: has no `intent`: give the cohort, or null for out of scope")
        body, headers = row.request("auto")
        cohort = label.intent if isinstance(label.intent, str) else None
        rows.append(GoldenRow(row.line, body, headers, cohort))
    if not rows:
        raise ValueError(f"{path}: has no row: see docs/reference/traffic.md for the format")
    return rows
