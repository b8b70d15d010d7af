"""Checks of the key `candidate`."""

from collections.abc import Iterator

from extproc.config.schema import POLICY_FILE, PolicyFile


def check_candidate(policy: PolicyFile) -> Iterator[tuple[str, str, str]]:
    """(file, path, what is wrong) for every mistake in the key. `load_candidate` checks the files."""
    candidate = policy.candidate
    if candidate is None:
        return
    if not candidate.dir:
        yield POLICY_FILE, ".candidate.dir", "`dir` is empty: name the folder with the intents of the candidate"
    if not 0 <= candidate.percent <= 100:
        what = f"`percent` is {candidate.percent:g}: expected a number from 0 to 100"
        yield POLICY_FILE, ".candidate.percent", what
    if not 0 < candidate.loss < 1:
        what = "expected a number above 0 and below 1, as in 0.02 for 2 percentage points"
        yield POLICY_FILE, ".candidate.loss", f"`loss` is {candidate.loss:g}: {what}"
