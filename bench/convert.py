"""Published data sets -> the traffic format: `python -m bench.convert KIND FILE > traffic.jsonl`."""

import argparse
import sys
from pathlib import Path

import msgspec

from bench.replay import Question
from extproc.evidence.data.convert import Formats, Source, convert
from extproc.evidence.data.traffic import BadRow


def clinc150(source: Source) -> Source:
    """CLINC150 (Larson et al. 2019): `split`, `intent` ("oos": out of scope), `text`."""
    return {"text": source["text"], "intent": source["intent"]}


def routellm(source: Source) -> Source | None:
    """RouteLLM's MMLU (Ong et al. 2024): whether each of two models was right.

    Contaminated prompts are left out, as in its own evaluation.
    """
    if source["contaminated"]:
        return None
    outcomes = {tier: {"success": source[tier]} for tier in ("weak", "strong")}
    return {"text": source["prompt"], "intent": source["subject"], "outcomes": outcomes}


def mmlupro(source: Source) -> Source:
    """MMLU-Pro with recorded answers: an answer is right if its letter is that of the correct option."""
    question = msgspec.convert(source, Question)
    outcomes = {
        tier: {"success": question.right(tier), "answer": answer.text, "finish": answer.finish}
        for tier, answer in question.answers.items()
    }
    intent = question.category.replace(" ", "-")
    return {"id": question.id, "text": question.prompt, "intent": intent, "outcomes": outcomes}


DATA_SETS: Formats = {"clinc150": clinc150, "routellm": routellm, "mmlupro": mmlupro}


def main() -> None:
    """Print the rows to stdout, and the lines that cannot be converted to stderr."""
    parser = argparse.ArgumentParser(prog="python -m bench.convert", description=__doc__)
    parser.add_argument("kind", choices=DATA_SETS, help="the data set")
    parser.add_argument("file", type=Path, help="its JSON lines; gzipped if the name ends in .gz")
    parser.add_argument(
        "--where",
        action="append",
        default=[],
        metavar="MEMBER=VALUE",
        help="convert only lines whose member has this value; give it again for more conditions",
    )
    options = parser.parse_args()
    where = dict(condition.partition("=")[::2] for condition in options.where)
    for row in convert(options.kind, options.file, where, DATA_SETS):
        if isinstance(row, BadRow):
            print(f"{options.file}:{row.line}: skipped: {row.what}", file=sys.stderr)
        else:
            sys.stdout.buffer.write(row + b"\n")


if __name__ == "__main__":
    main()
