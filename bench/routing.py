"""The quality of routing, compared with controls: `make bench-routing`.

- CLINC150: the intent of a text, and whether it is in scope.
- The MMLU data of RouteLLM: the prompts that need the strong model.
- Recorded answers to MMLU-Pro: the quality and cost of routing, of a cascade and of both. One table has predictions
  of this benchmark, another the choices of `extproc calibrate`.

Embeddings, fitted centroids and adapted encoders are cached in .cache/bench-routing. A second run takes minutes.
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
from bench.cache import Cache
from bench.intents_table import adapt_encoders

Table = Callable[[Cache, Path, int], Iterator[str]]
TABLES: dict[str, tuple[str, str, Table]] = {
    "routellm": (
        "The MMLU data of RouteLLM (GPT-4 and Mixtral-8x7B) by its protocol, but calibrated on MMLU itself.\n"
        "The routers of RouteLLM had not seen MMLU (zero-shot), so its published numbers are not comparable.",
        "routellm_mmlu.jsonl.gz",
        routellm_table.table,
    ),
    "frontier": (
        "Recorded answers to MMLU-Pro (Llama-3.1-8B and Gemini-1.5-Pro)",
        "mmlupro_recorded.jsonl.gz",
        frontier_table.table,
    ),
    "calibrate": (
        "Recorded answers to MMLU-Pro: the choices of `extproc calibrate --target`, measured by `extproc eval`",
        "mmlupro_recorded.jsonl.gz",
        calibrate_table.table,
    ),
    "clinc150": ("CLINC150: 4,500 texts in scope, 1,000 out of scope", "clinc150.jsonl.gz", intents_table.table),
}


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--cache", type=Path, default=Path(".cache/bench-routing"), help="folder for cached arrays")
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    began = time.monotonic()
    cache = Cache(args.cache)
    # Adapting the encoders uses one core for minutes. The other tables use the other core. More threads would only
    # spin while they wait for each other.
    with threadpool_limits(1), ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        clinc = args.data / TABLES["clinc150"][1]
        adapting = pool.submit(adapt_encoders, args.cache, clinc, args.seed) if "clinc150" in args.tables else None
        for name, (title, file, table) in TABLES.items():
            if name not in args.tables:
                continue
            table_began = time.monotonic()
            if table is intents_table.table and adapting is not None:
                adapting.result()
            print(f"\n{title}\n")
            for line in table(cache, args.data / file, args.seed):
                print(line, flush=True)
            print(f"({time.monotonic() - table_began:.0f} s)")
    load = ", ".join(f"{average:.1f}" for average in os.getloadavg())
    print(f"\npython -m bench.routing --seed {args.seed}: {time.monotonic() - began:.0f} s; load averages {load}")


if __name__ == "__main__":
    main()
