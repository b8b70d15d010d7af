"""The files of keys and certificates, as far as this machine can read them. Envoy may run elsewhere."""

import ssl
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import msgspec

from extproc.config.load import Config, ConfigError
from extproc.config.schema import POLICY_FILE
from extproc.config.strict_yaml import Problem, line_of
from extproc.settings import TierKey


class _File(msgspec.Struct, frozen=True):
    """A file that a policy names."""

    at: str  # the path of its value in the policy
    kind: str
    path: str
    reader: str  # the process that reads it
    mistakes: Callable[[Path], Iterator[str]]


def check_upstream_files(config: Config) -> list[Problem]:
    """Return a note for each file that is not on this machine. Raises ConfigError for a file that cannot be used.

    A missing file is a mistake if its folder is here. If the folder is missing, too, another machine may have it.
    """
    problems, notes = [], []
    for each in _files(config):
        line = line_of(config.lines, POLICY_FILE, each.at)
        file = Path(each.path)
        name = f"{each.kind} file {file}"
        if file.parent.is_dir():
            problems += [Problem(POLICY_FILE, line, f"{name} {what}") for what in each.mistakes(file)]
        else:
            what = f"{name} is not on this machine, so it was not checked: make sure that {each.reader} can read it"
            notes.append(Problem(POLICY_FILE, line, what))
    if problems:
        raise ConfigError(problems)
    return notes


def _files(config: Config) -> Iterator[_File]:
    """The key and the certificates of each tier, and the key of each judge."""
    for i, tier in enumerate(config.policy.tiers):
        if tier.key is not None:
            yield _key_file(f".tiers[{i}]", tier.key, "Envoy")
        if tier.ca:
            yield _File(f".tiers[{i}].ca", "ca", tier.ca, "Envoy", _ca_mistakes)
    for name, judge in config.policy.judges.items():
        if judge.key is not None:
            yield _key_file(f".judges.{name}", judge.key, "the router")


def _key_file(at: str, key: TierKey, reader: str) -> _File:
    return _File(f"{at}.key.file", "key", key.file, reader, partial(_key_mistakes, key))


def _key_mistakes(key: TierKey, file: Path) -> Iterator[str]:
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


def _ca_mistakes(file: Path) -> Iterator[str]:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(file)
    except ssl.SSLError:
        yield "has no certificate that can be read: write certificates in PEM into it"
    except OSError as error:
        yield f"cannot be read ({error.strerror}): write the certificates into it, or correct `ca`"
