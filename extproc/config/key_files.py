"""The files of keys, as far as this machine can read them. Envoy may run elsewhere and see others."""

from collections.abc import Iterator
from pathlib import Path

from extproc.config.load import Config, ConfigError
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem, line_of
from extproc.settings import TierKey


def check_key_files(config: Config) -> list[Problem]:
    """Return a note for each file that is not on this machine. Raises ConfigError for a file that holds no key.

    A missing file is a mistake if its folder is here. If the folder is missing, too, another machine may have it.
    """
    problems, notes = [], []
    for at, key, reader in _keys(config):
        line = line_of(config.lines, POLICY_FILE, f"{at}.key.file")
        file = Path(key.file)
        if not file.parent.is_dir():
            what = f"key file {file} is not on this machine, so it was not checked: see that {reader} can read it"
            notes.append(Problem(POLICY_FILE, line, what))
            continue
        problems += [Problem(POLICY_FILE, line, f"key file {file} {what}") for what in _mistakes(file, key)]
    if problems:
        raise ConfigError(problems)
    return notes


def _keys(config: Config) -> Iterator[tuple[str, TierKey, str]]:
    """The path of each tier and judge with a key, the key, and the process that reads it."""
    for i, tier in enumerate(config.policy.tiers):
        if tier.key is not None:
            yield f".tiers[{i}]", tier.key, "Envoy"
    for name, judge in config.policy.judges.items():
        if judge.key is not None:
            yield f".judges.{name}", judge.key, "the router"


def _mistakes(file: Path, key: TierKey) -> Iterator[str]:
    try:
        text = file.read_text(encoding="ascii").strip()
    except OSError as error:
        yield f"cannot be read ({error.strerror}): write the key into it, or correct `file`"
        return
    except UnicodeDecodeError:
        yield "has characters that a header cannot have: write only the key into it"
        return
    scheme = key.prefix.strip()
    if not text:
        yield "is empty: write the key into it"
    elif "${" in text or text.startswith("$"):
        yield "names a variable, and Envoy does not replace it: write the key itself into it"
    elif not text.isprintable():
        yield "has several lines: write only the key into it"
    elif scheme and text.lower().startswith(f"{scheme.lower()} "):
        yield f"begins with `{scheme}`, which is sent in front of the key anyway: remove it from the file"
    elif not scheme and key.header == "authorization" and " " not in text:
        yield "has no scheme in front of the key, as in `Bearer ...`: add it, or remove `scheme: none`"
