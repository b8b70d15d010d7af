"""How the demo prints: headings, tables of fixed columns and a list of terms, at most 110 characters wide."""

import textwrap

WIDTH = 108
PROMPT_WIDTH = 42
_TERM_WIDTH = 11


def print_heading(title: str, explanation: str) -> None:
    print(f"\n{title}\n\n{textwrap.fill(explanation, WIDTH)}\n")


def print_columns(columns: str, *names: str) -> None:
    """Print the head of a table. `columns` is the format of its rows."""
    print(columns.format(*names))
    print("-" * WIDTH)


def print_row(columns: str, *cells: str) -> None:
    print(columns.format(*cells).rstrip(), flush=True)


def print_terms(terms: dict[str, str]) -> None:
    """Print what each term means."""
    for name, meaning in terms.items():
        print(textwrap.fill(f"{name:<{_TERM_WIDTH}}{meaning}", WIDTH, subsequent_indent=" " * _TERM_WIDTH))


def shortened(prompt: str) -> str:
    """Cut a prompt to the width of its column."""
    return prompt if len(prompt) <= PROMPT_WIDTH else prompt[: PROMPT_WIDTH - 1] + "…"


def yes_or_no(answer: bool) -> str:
    return "yes" if answer else "no"
