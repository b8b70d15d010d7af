"""`extproc map`: the decision and the vector of every row of Parquet files, with Ray Data.

A file is the unit of work. It is read in batches, and its copy gets new columns. The copy takes its name only when
it is whole, so a run that was stopped goes on with the files that are missing. The functions that decide are those
that serve.
"""

import hashlib
import logging
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from extproc.config.compile import compile_snapshot, texts_of
from extproc.config.load import load_config
from extproc.encoder.backends import load_encoder
from extproc.evidence.data.groups import text_key
from extproc.evidence.data.parquet import arrow_parquet, check_columns, parquet_files, parse_rows
from extproc.evidence.data.traffic import BadRow, Row
from extproc.evidence.execution import Memory, ask_of, route_all, trusted_cohort
from extproc.routing.routed import Routed
from extproc.routing.snapshot import Snapshot

_BATCH_ROWS = 2048


def map_folder(intents: Path, source: Path, target: Path) -> int:
    """Map every file of `source` that `target` lacks, and return their number. Raises OSError without files.

    It runs on the cluster of `RAY_ADDRESS`, or on all cores of this machine.
    """
    files = parquet_files(source)
    target.mkdir(parents=True, exist_ok=True)
    waiting = [file for file in files if not (target / file.name).exists()]
    _show(f"{len(files) - len(waiting)} of {len(files)} files are there already")
    if not waiting:
        return 0
    check_columns(waiting)
    ray = _ray()
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    workers = max(1, min(len(waiting), int(ray.cluster_resources().get("CPU", 1))))
    items = [{"file": str(file.resolve())} for file in waiting]
    mapped = ray.data.from_items(items, override_num_blocks=len(items)).map(
        FileMapper,
        fn_constructor_args=(str(intents.resolve()), str(target.resolve())),
        compute=ray.data.ActorPoolStrategy(size=workers),
    )
    for result in mapped.iter_rows():
        _show(f"{result['file']}: {result['rows']:,} rows, {result['bad']:,} of them unusable")
    return len(waiting)


def _show(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _ray() -> Any:
    arrow_parquet()
    try:
        import ray.data
    except ImportError as error:
        raise ValueError(
            f"{error}: `extproc map` needs more packages: pip install 'envoy-semantic-router[scale]'"
        ) from error
    return ray


class FileMapper:
    """Maps files, one after the other. Each process of the cluster has one, which loads the encoder once."""

    def __init__(self, intents: str, target: str) -> None:
        config = load_config(Path(intents))
        encoder = load_encoder(config.policy.encoder.model, os.cpu_count() or 1)
        self._memory = Memory(encoder, encoder.sentences.encode)
        self._memory.encode_utterances(texts_of(config))
        self._snapshot = compile_snapshot(config, self._memory)
        self._target = Path(target)

    def __call__(self, item: dict[str, Any]) -> dict[str, Any]:
        """Map the file with this path."""
        file = Path(item["file"])
        rows, bad = map_file(self._snapshot, self._memory, file, self._target / file.name)
        return {"file": file.name, "rows": rows, "bad": bad}


def map_file(snapshot: Snapshot, memory: Memory, source: Path, target: Path) -> tuple[int, int]:
    """Write a copy of a Parquet file with the new columns. Return the number of rows, and of unusable ones."""
    rows, bad, pq = 0, 0, arrow_parquet()
    part = target.with_name(f".{target.name}.part")
    file = pq.ParquetFile(source)
    writer = None
    try:
        for batch in file.iter_batches(_BATCH_ROWS):
            parsed = list(parse_rows(batch, rows + 1))
            mapped = _with_columns(batch, _columns(snapshot, memory.fresh(), parsed))
            writer = writer or pq.ParquetWriter(part, mapped.schema)
            writer.write_batch(mapped)
            rows += len(parsed)
            bad += sum(isinstance(row, BadRow) for row in parsed)
    finally:
        if writer is not None:
            writer.close()
    if writer is None:  # a file without rows has no columns to add
        pq.write_table(file.read(), part)
    os.replace(part, target)
    return rows, bad


def _columns(snapshot: Snapshot, memory: Memory, parsed: list[Row | BadRow]) -> dict[str, Any]:
    """Return the new columns. An unusable row has null in all of them, and a row without an ask has no vector."""
    import pyarrow as pa

    usable = [row for row in parsed if isinstance(row, Row)]
    decided = iter(route_all(snapshot, memory, usable))
    pairs = [(row, next(decided)) if isinstance(row, Row) else None for row in parsed]
    asks = list({_ask(routed) for pair in pairs if pair is not None for routed in [pair[1]]} - {""})
    vectors = dict(zip(asks, memory.encode(asks).astype(np.float16), strict=True)) if asks else {}
    size = memory.encode(["."]).shape[1]
    decisions = [pair[1].decision if pair is not None else None for pair in pairs]
    matches = [decision.match if decision is not None else None for decision in decisions]
    return {
        "cohort": pa.array([d.cohort.name if d is not None and d.cohort is not None else None for d in decisions],
                           pa.string()),
        "reason": pa.array([d.reason.value if d is not None else None for d in decisions], pa.string()),
        "tier": pa.array([d.tier.name if d is not None else None for d in decisions], pa.string()),
        "trusted": pa.array([trusted_cohort(pair[1]) is not None if pair is not None else None for pair in pairs],
                            pa.bool_()),
        "similarity": pa.array([m.similarity if m is not None else None for m in matches], pa.float32()),
        "margin": pa.array([m.margin if m is not None else None for m in matches], pa.float32()),
        "text_hash": pa.array([_hash(ask_of(*pair)) if pair is not None else None for pair in pairs], pa.uint64()),
        "vector": pa.array([vectors.get(_ask(pair[1])) if pair is not None else None for pair in pairs],
                           pa.list_(pa.float16(), size)),
    }  # fmt: skip


def _ask(routed: Routed) -> str:
    """The text that the router embedded."""
    return routed.signals.ask.text if routed.signals is not None and routed.decision.match is not None else ""


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text_key(text).encode(), digest_size=8).digest(), "little")


def _with_columns(batch: Any, columns: dict[str, Any]) -> Any:
    """Return the batch with these columns, in place of columns of the same names."""
    for name in set(columns) & set(batch.schema.names):
        batch = batch.drop_columns([name])
    for name, column in columns.items():
        batch = batch.append_column(name, column)
    return batch
