"""The states of the verifier's hold on an answer, from its table of transitions."""

from docs.generate import words
from docs.generate.markdown import NOTICE, code, described, no_leftovers, table
from docs.generate.picture import box, picture, text
from extproc.verifying.hold import TRANSITIONS, State, Step

_COLUMN, _ROW, _WIDTH, _HEIGHT = 290, 110, 150, 44
_STYLE = """
    .line { stroke: #37474f; stroke-width: 1.6; fill: none; marker-end: url(#a) }
    @media (prefers-color-scheme: dark) { .line { stroke: #cfd8dc } .tip { fill: #cfd8dc } }
"""
_ARROW = (
    '<defs><marker id="a" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8" orient="auto">'
    '<path class="tip" fill="#37474f" d="M0 0 10 5 0 10z"/></marker></defs>'
)


def verifier_stream_tables() -> str:
    """The states, and the steps between them."""
    no_leftovers(words.HOLD_STATES, [state.value for state in State], "state of the hold")
    no_leftovers(words.HOLD_STEPS, [step.value for step in Step], "step of the hold")
    states = [(code(state), described(words.HOLD_STATES, state.value, "state of the hold")) for state in State]
    steps = [
        (code(before), code(step), code(after), described(words.HOLD_STEPS, step.value, "step of the hold"))
        for (before, step), after in TRANSITIONS.items()
    ]
    return (
        "\n\n".join(
            [
                NOTICE,
                table(("State", "A message that arrives"), states),
                table(("From", "Step", "To", "When"), steps),
            ]
        )
        + "\n"
    )


def verifier_stream_picture() -> str:
    """The states from left to right, in the order in which they can be reached."""
    places = _places()
    columns = max(column for column, _ in places.values()) + 1
    rows = max(row for _, row in places.values()) + 1
    parts = [_ARROW]
    for (before, step), after in TRANSITIONS.items():
        parts += _arrow(places[before], places[after], step.value)
    for state, (column, row) in places.items():
        parts += box(30 + column * _COLUMN, 40 + row * _ROW, _WIDTH, _HEIGHT, state.value)
    size = 60 + (columns - 1) * _COLUMN + _WIDTH, 80 + (rows - 1) * _ROW + _HEIGHT
    return picture(*size, "States of the hold on an answer", parts, _STYLE)


def _places() -> dict[State, tuple[int, int]]:
    """Column and row of each state: a column beyond the furthest state that leads to it."""
    columns = dict.fromkeys(State, 0)
    for _ in State:
        for (before, _step), after in TRANSITIONS.items():
            columns[after] = max(columns[after], columns[before] + 1)
    rows: dict[int, int] = {}
    places = {}
    for state, column in columns.items():
        row = rows.get(column, 0)
        rows[column] = row + 1
        places[state] = (column, row)
    return places


def _arrow(before: tuple[int, int], after: tuple[int, int], label: str) -> list[str]:
    left, right = 30 + before[0] * _COLUMN + _WIDTH, 30 + after[0] * _COLUMN
    top, bottom = (40 + row * _ROW + _HEIGHT // 2 for row in (before[1], after[1]))
    if after[0] - before[0] > 1:  # above what stands between the two
        start, end = left - _WIDTH // 2, right + _WIDTH // 2
        path = f"M{start} {top - _HEIGHT // 2}C{start} 0 {end} 0 {end} {bottom - _HEIGHT // 2}"
        return [f'<path class="line" d="{path}"/>', *text((start + end) // 2, 30, label)]
    beside = 34 if top != bottom else 0
    line = f'<path class="line" d="M{left} {top}L{right} {bottom}"/>'
    return [line, *text((left + right) // 2 + beside, (top + bottom) // 2 - 8, label)]
