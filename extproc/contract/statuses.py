"""The HTTP statuses that bring an answer. Clients take any 2xx as a success, but two of them never have a body."""

NO_BODY = (204, 205)


def has_answer(status: int) -> bool:
    """Return whether a response with this status has an answer for the client."""
    return 200 <= status < 300 and status not in NO_BODY


def has_answer_sql(column: str) -> str:
    """Return the same condition on a column, as SQL."""
    return f"({column} BETWEEN 200 AND 299 AND {column} NOT IN {NO_BODY})"
