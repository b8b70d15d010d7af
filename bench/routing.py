"""How well we route, beside the lines to beat: `make bench-routing`.

CLINC150: which intent, and in scope or not. RouteLLM's MMLU: which prompts need the strong model. MMLU-Pro as
recorded: what routing, cascading and both buy, as far as can be seen, and as `extproc calibrate` chooses them.

Embeddings, fitted centroids and adapted encoders are kept in .cache/bench-routing: a second run takes minutes.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

from threadpoolctl import threadpool_limits

from bench import calibrate_table, frontier_table, intents_table, routellm_table
from bench.intents_table import adapt_encoders
from bench.kept import Kept

Table = Callable[[Kept, Path, int], Iterator[str]]
TABLES: dict[str, tuple[str, str, Table]] = {
    "routellm": (
        "RouteLLM's MMLU (GPT-4 and Mixtral-8x7B), its protocol; calibrated on own traffic, which is not\n"
        "RouteLLM's zero-shot setting: its routers had seen no MMLU, and these numbers do not compare with its own",
        "routellm_mmlu.jsonl.gz",
        routellm_table.table,
    ),
    "frontier": (
        "MMLU-Pro as recorded (Llama-3.1-8B and Gemini-1.5-Pro)",
        "mmlupro_recorded.jsonl.gz",
        frontier_table.table,
    ),
    "calibrate": (
        "MMLU-Pro as recorded, as `extproc calibrate --target` chooses and `extproc eval` serves",
        "mmlupro_recorded.jsonl.gz",
        calibrate_table.table,
    ),
    "clinc150": ("CLINC150: 4,500 texts in scope, 1,000 out of scope", "clinc150.jsonl.gz", intents_table.table),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--kept", type=Path, default=Path(".cache/bench-routing"))
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    began = time.monotonic()
    kept = Kept(given.kept)
    # Adapting encoders takes one core for minutes: the other tables have the other. More threads than that wait for
    # one another, busily.
    with threadpool_limits(1), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as beside:
        clinc = given.data / TABLES["clinc150"][1]
        adapting = (
            beside.submit(adapt_encoders, given.kept, clinc, given.seed) if "clinc150" in given.tables else None
        )
        for name, (title, file, table) in TABLES.items():
            if name not in given.tables:
                continue
            since = time.monotonic()
            if table is intents_table.table and adapting is not None:
                adapting.result()
            print(f"\n{title}\n")
            for line in table(kept, given.data / file, given.seed):
                print(line, flush=True)
            print(f"({time.monotonic() - since:.0f} s)")
    load = ", ".join(f"{of:.1f}" for of in os.getloadavg())
    print(f"\npython -m bench.routing --seed {given.seed}: {time.monotonic() - began:.0f} s; load averages {load}")


if __name__ == "__main__":
    main()
