"""Write every generated page, and say which changed. Exit 2 if something has no description."""

import sys
from pathlib import Path

from docs.generate.markdown import MissingWordsError
from docs.generate.pages import PAGES

DOCS = Path(__file__).parents[1]


def main() -> int:
    """Write the pages into this folder's parent."""
    try:
        texts = {name: page() for name, page in PAGES.items()}
    except MissingWordsError as error:
        print(f"docs.generate: {error}", file=sys.stderr)
        return 2
    for name, text in texts.items():
        path = DOCS / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            print(f"wrote docs/{name}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
