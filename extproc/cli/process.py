"""How a process of this package starts and ends: quiet libraries, a log on stderr, and an exit code."""

import logging
import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from extproc.config.load import ConfigError
from extproc.encoder.protocols import EncoderError
from extproc.mismatch import counted

USER_ERROR = 2
INTERRUPTED = 130
BROKEN_PIPE = 141  # as a shell reports a program that SIGPIPE ended


def run_process(run: Callable[[], int], intents: Path | None = None) -> int:
    """Run to the end and return the exit code: the code of `run`, or 2 if the user's input is at fault.

    Each mistake in YAML is printed on one line, with the path of its file. `intents` is the folder of the YAML, for
    errors that do not know it.
    """
    _set_up_logging()
    try:
        code = run()
        sys.stdout.flush()
        return code
    except ConfigError as error:
        _print_problems(error, error.folder or intents or Path())
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_left():
            return BROKEN_PIPE
        print(f"extproc: {in_words(error)}", file=sys.stderr)
    except (EncoderError, ValueError) as error:
        print(f"extproc: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        return INTERRUPTED
    return USER_ERROR


def _reader_left() -> bool:
    """Whether the reader of our output, such as `head`, has all that it wants. The rest of it then goes nowhere."""
    poll = select.poll()
    poll.register(sys.stdout, 0)
    left = any(event & select.POLLERR for _, event in poll.poll(0))
    if left:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return left


def in_words(error: OSError) -> str:
    """The file first and without the number of the error, as in the messages about YAML."""
    if error.filename is None or not error.strerror:
        return str(error)
    return f"{os.fsdecode(error.filename)}: {error.strerror[0].lower()}{error.strerror[1:]}"


def _set_up_logging() -> None:
    # Model loaders draw progress bars and warn about model hubs. Our log is for the operator alone.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TQDM_DISABLE", "1")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("extproc").setLevel(logging.INFO)


def _print_problems(error: ConfigError, folder: Path) -> None:
    for problem in error.problems:
        print(f"{folder / problem.file}:{problem.line}: {problem.what}", file=sys.stderr)
    print(f"{counted(len(error.problems), 'problem')} in {folder}", file=sys.stderr)
