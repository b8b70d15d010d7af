"""The end of a rollout on disk: the files of the candidate take the place of those that serve, or its key goes."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from extproc.config.load import Config, candidate_folder, load_candidate, load_config
from extproc.config.reading import yaml_files
from extproc.config.schema import POLICY_FILE, PolicyFile
from extproc.config.strict_yaml import Problem, decode_yaml, pairs_of
from extproc.contract.names import CANDIDATE_PREFIX
from extproc.routing.gain_file import FITTED_FILES
from extproc.settings import Candidate

_KEY, _PLACE = "candidate", "next"


def promote(folder: Path) -> Iterator[str]:
    """Move the files of the candidate into `folder`. Yield a line for each step that is done.

    All new files are written beside the old ones first. Then each of them replaces its old file atomically, and
    the policy without the key comes last. A copy of the old files stays in a folder beside `folder`. Raises
    ConfigError or ValueError before anything is changed, and OSError.
    """
    config = config_with_candidate(folder)
    candidate, place = load_candidate(config, folder), candidate_folder(config, folder)
    policy = without_candidate((folder / POLICY_FILE).read_bytes())
    new = {path.name: path.read_bytes() for path in _files(place)}
    old = [path for path in _files(folder) if path.name != POLICY_FILE]
    backup = Path(f"{os.path.abspath(folder)}.before-{candidate.revision.removeprefix(CANDIDATE_PREFIX)}")
    if backup.exists():
        raise ValueError(
            f"{backup} has the files from before an earlier promotion of this candidate: move it elsewhere"
        )
    backup.mkdir()
    for path in _files(folder):
        shutil.copy2(path, backup / path.name)
    yield f"copied {len(old) + 1} files of {folder} to {backup}"
    for name, content in new.items():
        _beside(folder / name).write_bytes(content)
    for name in new:
        os.replace(_beside(folder / name), folder / name)
    removed = [path for path in old if path.name not in new]
    for path in removed:
        path.unlink()
    _replace(folder / POLICY_FILE, policy)
    yield f"moved {len(new)} files of {place} to {folder}, and removed {len(removed)} old ones there"
    for path in _files(place):
        path.unlink()
    if not any(place.iterdir()):
        place.rmdir()
    yield f"removed `{_KEY}` from {folder / POLICY_FILE}"


class CandidateRunning(ValueError):
    """Another candidate is compared now."""


def propose_candidate(folder: Path, new: Path, percent: float | None) -> str:
    """Let the files in `new` be the candidate of `folder`, and say what was done.

    It decides about `percent` of the conversations. None: it only decides beside. A candidate that only decides
    beside is replaced. The key in policy.yaml comes last. Raises CandidateRunning if another candidate has
    conversations, ValueError or OSError.
    """
    config = load_config(folder)
    content = {path.name: path.read_bytes() for path in _files(new) if path.name != POLICY_FILE}
    place, before = folder / _PLACE, config.policy.candidate
    if before is not None:
        place = candidate_folder(config, folder)
        same = content == {path.name: path.read_bytes() for path in _files(place)}
        if same and not (before.shadow and percent is not None):
            return f"the same candidate is in {place} already"
        if not before.shadow:
            raise CandidateRunning(
                f"another candidate is compared in {place}: promote it or stop it with `extproc rollout` first. "
                f"The new files stay in {new}"
            )
    place.mkdir(exist_ok=True)
    for path in _files(place):
        if path.name not in content:
            path.unlink()
    for name, raw in content.items():
        _replace_raw(place / name, raw)
    spec = before or Candidate(dir=_PLACE)
    _write_key(folder, msgspec.structs.replace(spec, **_share(percent)))
    what = (
        "decides beside the policy and changes no traffic"
        if percent is None
        else f"decides about {percent:g} % of the conversations"
    )
    return f"the candidate in {place} {what}"


def start(folder: Path, percent: float) -> str:
    """Give the candidate this share of the conversations, and say so. Raises ConfigError, ValueError or OSError.

    A candidate with a mistake gets none, because a router would have it off.
    """
    config = config_with_candidate(folder)
    load_candidate(config, folder)
    spec = config.policy.candidate
    assert spec is not None
    _write_key(folder, msgspec.structs.replace(spec, **_share(percent)))
    return f"the candidate in {candidate_folder(config, folder)} decides about {percent:g} % of the conversations"


def _share(percent: float | None) -> dict[str, Any]:
    return {"shadow": True} if percent is None else {"shadow": False, "percent": percent}


def _write_key(folder: Path, spec: Candidate) -> None:
    """Write the key `candidate` into policy.yaml. Everything else stays, also the comments on its lines."""
    raw = (folder / POLICY_FILE).read_bytes()
    before = _decoded(raw)
    share = "shadow: true" if spec.shadow else f"percent: {spec.percent:g}, loss: {spec.loss:g}"
    line = f"{_KEY}: {{dir: {msgspec.json.encode(spec.dir).decode()}, {share}}}\n"
    wanted = msgspec.structs.replace(before, candidate=spec) if before is not None else None
    edited = next((text for text in _edits(raw, before, spec, line) if _decoded(text) == wanted), None)
    if wanted is None or edited is None:
        raise ValueError(f"{folder / POLICY_FILE} does not have one key per line: add `{line.rstrip()}` by hand")
    _replace(folder / POLICY_FILE, edited)


def _edits(raw: bytes, before: PolicyFile | None, spec: Candidate, line: str) -> Iterator[bytes]:
    """Yield texts of policy.yaml with the candidate: edited in its place, and with `line` at the end."""
    if before is not None and before.candidate is not None:
        with contextlib.suppress(UnicodeDecodeError):
            yield _with_share(raw.decode(), spec).encode()
        raw = without_candidate(raw)
    yield raw + (b"" if raw.endswith(b"\n") else b"\n") + line.encode()


def _with_share(text: str, spec: Candidate) -> str:
    """The text of policy.yaml with the candidate's share in the place of the old one, or before its folder."""
    pairs = pairs_of(text, _KEY)
    if "dir" not in pairs:  # it is no plain key
        return text
    share, value = ("shadow", "true") if spec.shadow else ("percent", f"{spec.percent:g}")
    place, shadow = pairs.get(share), pairs.get("shadow")
    edits = []
    if place is not None:
        edits.append((place.value, place.end, value))
    if shadow is not None and not spec.shadow:
        edits.append((shadow.start, shadow.end, f"{share}: {value}" if place is None else "shadow: false"))
    if not edits:
        at = pairs["dir"].start
        line_start = text.rfind("\n", 0, at) + 1
        first = not text[line_start:at].strip()  # in its line
        edits.append((at, at, f"{share}: {value}" + (f"\n{text[line_start:at]}" if first else ", ")))
    for start, end, new in sorted(edits, reverse=True):  # from the back, so that the places stay
        text = text[:start] + new + text[end:]
    return text


def stop(folder: Path) -> str:
    """Remove the key `candidate`, and say so. The files of the candidate stay. Raises ValueError or OSError."""
    place = candidate_folder(config_with_candidate(folder), folder)
    _replace(folder / POLICY_FILE, without_candidate((folder / POLICY_FILE).read_bytes()))
    return f"removed `{_KEY}` from {folder / POLICY_FILE}; its files stay in {place}"


def config_with_candidate(folder: Path) -> Config:
    """The configuration in `folder`. Raises ConfigError, or ValueError if it has no candidate."""
    config = load_config(folder)
    if config.policy.candidate is None:
        raise ValueError(f"{folder / POLICY_FILE} has no candidate: add `candidate: {{dir: FOLDER}}`")
    return config


def without_candidate(raw: bytes) -> bytes:
    """The text of policy.yaml without the key. All other lines stay. Raises ValueError."""
    lines = raw.splitlines(keepends=True)
    first = next((i for i, line in enumerate(lines) if line.startswith(f"{_KEY}:".encode())), len(lines))
    end = first + 1
    while end < len(lines) and lines[end].startswith((b" ", b"\t")):
        end += 1
    edited = b"".join([*lines[:first], *lines[end:]])
    before, after = _decoded(raw), _decoded(edited)
    if before is None or after != msgspec.structs.replace(before, candidate=None):
        raise ValueError(f"{POLICY_FILE} does not have one key per line: remove `{_KEY}` by hand")
    return edited


def with_model(raw: bytes, model: str) -> bytes:
    """The text of policy.yaml with `model` as the path of its encoder. All other lines stay. Raises ValueError."""
    before = _decoded(raw)
    if before is None or before.encoder.model == model:
        return raw
    edited = raw.replace(before.encoder.model.encode(), model.encode(), 1)
    wanted = msgspec.structs.replace(before.encoder, model=model)
    if _decoded(edited) != msgspec.structs.replace(before, encoder=wanted):
        raise ValueError(f"{POLICY_FILE}: write {model} as the model of the encoder, which its text does not show")
    return edited


def _decoded(raw: bytes) -> PolicyFile | None:
    problems: list[Problem] = []
    return decode_yaml(POLICY_FILE, raw, PolicyFile, problems, {})


def _files(folder: Path) -> list[Path]:
    return [*yaml_files(folder), *(path for name in FITTED_FILES for path in folder.glob(name))]


def _beside(path: Path) -> Path:
    """A hidden file beside `path`, which no router reads."""
    return path.with_name(f".{path.name}.new")


def _replace_raw(path: Path, content: bytes) -> None:
    beside = _beside(path)
    beside.write_bytes(content)
    os.replace(beside, path)


def _replace(path: Path, content: bytes) -> None:
    beside = _beside(path)
    beside.write_bytes(content)
    shutil.copymode(path, beside)
    os.replace(beside, path)
