"""gains.safetensors, in the folder of the YAML: predicted gains by prompt, from `extproc calibrate --target`.

An intent with `by_prompt` names the file by its seal. The header names the encoder, the utterances and the models
of the tiers. If one of them changes, or the file is another one, it is stale and the cohort's own tier serves.
"""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from extproc.acceptance.score import SCORE_FACTS
from extproc.routing.centroid_file import CENTROIDS_FILE, metadata_header
from extproc.routing.prompt_facts import PROMPT_FACTS
from extproc.routing.prompt_gain import RATES, GainTrees, PromptColumns, PromptGains, Trees
from extproc.settings import Tier

GAINS_FILE = "gains.safetensors"
FITTED_FILES = (CENTROIDS_FILE, GAINS_FILE)  # beside the YAML
# Raised when columns or trees are read in another way. A file of version 2 has no trees that read an answer.
VERSION, WITHOUT_ANSWERS = 3, 2
_PARTS = ("base", "features", "cuts", "leaves")  # of trees
# `calibrate` reads the folder, too, so a file that is refused has to go first.
_AGAIN = "delete the file, and run `extproc calibrate --target ... --write` again"


class OtherVersionError(ValueError):
    """The file is of another release. Unlike a damaged one, it is not a mistake."""


class GainHeader(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The inputs of the fit."""

    version: int
    date: str
    data: str  # hash of the recorded traffic
    rows: int  # of the fit
    encoder: str  # name of the encoder
    utterances: str  # hash of the encoder's settings and of all intents with their utterances
    pairs: tuple[tuple[str, str], ...]  # of tiers, the cheaper one first
    models: dict[str, str]  # tier -> model
    cohorts: tuple[str, ...]
    facts: tuple[str, ...] = PROMPT_FACTS
    seal: str = ""  # hash of the arrays and of all other fields
    answer_facts: tuple[str, ...] = SCORE_FACTS  # of the trees that read an answer
    judged: tuple[tuple[str, str], ...] = ()  # the pairs that have such trees

    def __str__(self) -> str:
        pairs = ", ".join(f"{low} or {high}" for low, high in self.pairs)
        return f"{pairs} by the prompt, {len(self.cohorts)} cohorts, {self.rows} rows of {self.data}, {self.date}"


class _Version(msgspec.Struct, frozen=True):
    """The version of a file, which may have fields that this release does not know."""

    version: int


class GainFile(msgspec.Struct, frozen=True, eq=False):
    """The content of the file."""

    header: GainHeader
    gains: PromptGains

    def stale(self, encoder: str, utterances: str, tiers: Sequence[Tier]) -> str | None:
        """Return why the predictions are not valid for this configuration, or None if they are valid."""
        now, header = {tier.name: tier.model for tier in tiers}, self.header
        ranks = {tier.name: rank for rank, tier in enumerate(tiers)}
        changed = [name for name, model in header.models.items() if now.get(name) != model]
        if header.encoder != encoder:
            return f"it was fitted with the encoder {header.encoder}, not {encoder}"
        if header.utterances != utterances:
            return "utterances or encoder.max_chars changed since it was fitted"
        if changed:
            return f"the model of {', '.join(changed)} changed since it was fitted"
        if any(ranks[low] >= ranks[high] for low, high in header.pairs):
            return "the order of the tiers changed since it was fitted"
        return None


def encode_gains(header: GainHeader, gains: PromptGains) -> bytes:
    """Return the bytes of the file. Deterministic."""
    columns = gains.columns
    arrays = {"mean": columns.mean, "directions": columns.directions, "low": columns.low, "high": columns.high}
    for i, tiers in enumerate(header.pairs):
        pair = gains.pairs[tiers]
        arrays |= _arrays_of(f"{i}.gain", pair.gain) | _arrays_of(f"{i}.cost", pair.cost)
        arrays[f"{i}.rates"] = np.stack([pair.rates[name] for name in header.cohorts])
    for i, tiers in enumerate(header.judged):
        pair = gains.answers[tiers]
        arrays |= _arrays_of(f"answer.{i}.gain", pair.gain) | _arrays_of(f"answer.{i}.cost", pair.cost)
        arrays[f"answer.{i}.rates"] = np.stack([pair.rates[name] for name in header.cohorts])
    arrays = {name: np.ascontiguousarray(values) for name, values in arrays.items()}
    sealed = msgspec.structs.replace(header, seal=_seal(header, arrays))
    return bytes(save(arrays, metadata={"header": msgspec.json.encode(_fields(sealed)).decode()}))


def _fields(header: GainHeader) -> dict[str, Any]:
    """The fields that a file of this version has. An older release refuses a file with others."""
    fields: dict[str, Any] = msgspec.to_builtins(header)
    if header.version == WITHOUT_ANSWERS:
        fields = {name: value for name, value in fields.items() if name not in ("answer_facts", "judged")}
    return fields


def _arrays_of(prefix: str, trees: Trees) -> dict[str, np.ndarray]:
    return {
        f"{prefix}.base": np.array([trees.base], dtype=np.float32),
        f"{prefix}.features": trees.features.astype(np.int16),
        f"{prefix}.cuts": trees.cuts,
        f"{prefix}.leaves": trees.leaves,
    }


def decode_gains(raw: bytes) -> GainFile:
    """Return the content of the file.

    Raises ValueError, which says what to do, if the file is not valid, and OtherVersionError for another release.
    """
    try:
        arrays, written = load(raw), metadata_header(raw)
        version = msgspec.json.decode(written, type=_Version).version
        header = msgspec.json.decode(written, type=GainHeader) if version <= VERSION else None
    except (SafetensorError, msgspec.DecodeError, KeyError, TypeError) as error:
        raise ValueError(f"is not a file of gains ({error}): {_AGAIN}") from error
    if header is None or not _is_of_this_release(header):
        raise OtherVersionError(
            f"is of version {version}, and this release reads the versions {WITHOUT_ANSWERS} and {VERSION}: "
            f"{_AGAIN}"
        )
    if not _has_shapes(arrays, header):
        raise ValueError(f"its arrays do not have the shapes that its header describes: {_AGAIN}")
    if header.seal != _seal(header, arrays):
        raise ValueError(f"its content changed after `extproc calibrate` wrote it: {_AGAIN}")
    pairs = {tiers: _pair(arrays, f"{i}", tiers, header.cohorts) for i, tiers in enumerate(header.pairs)}
    answers = {tiers: _pair(arrays, f"answer.{i}", tiers, header.cohorts) for i, tiers in enumerate(header.judged)}
    columns = PromptColumns(arrays["mean"], arrays["directions"], arrays["low"], arrays["high"])
    return GainFile(header, PromptGains(columns, pairs, answers))


def _is_of_this_release(header: GainHeader) -> bool:
    """Whether the columns and the trees are those that this release computes."""
    if header.version not in (WITHOUT_ANSWERS, VERSION) or header.facts != PROMPT_FACTS:
        return False
    return not header.judged or header.answer_facts == SCORE_FACTS


def _pair(arrays: Mapping[str, np.ndarray], at: str, tiers: tuple[str, str], cohorts: Sequence[str]) -> GainTrees:
    rates = dict(zip(cohorts, arrays[f"{at}.rates"], strict=True))
    return GainTrees(tiers, _trees(arrays, f"{at}.gain"), _trees(arrays, f"{at}.cost"), rates)


def _trees(arrays: Mapping[str, np.ndarray], prefix: str) -> Trees:
    base, features, cuts, leaves = (arrays[f"{prefix}.{part}"] for part in _PARTS)
    return Trees(float(base[0]), features.astype(np.int64), cuts, leaves)


def _has_shapes(arrays: Mapping[str, np.ndarray], header: GainHeader) -> bool:
    """Whether every array has the shape and the type that the header requires, and finite numbers."""
    of_prompts, of_answers = range(len(header.pairs)), range(len(header.judged))
    pairs = [*map(str, of_prompts), *(f"answer.{i}" for i in of_answers)]
    rates = [f"{pair}.rates" for pair in pairs]
    prefixes = [f"{pair}.{of}" for pair in pairs for of in ("gain", "cost")]
    names = {"mean", "directions", "low", "high", *rates, *(f"{prefix}.{p}" for prefix in prefixes for p in _PARTS)}
    if {*arrays} != names or not header.pairs:
        return False
    mean, directions = arrays["mean"], arrays["directions"]
    if mean.ndim != 1 or directions.ndim != 2 or len(directions) != len(mean):
        return False
    width = directions.shape[1] + len(PROMPT_FACTS)
    return (
        arrays["low"].shape == arrays["high"].shape == (width,)
        and all(arrays[name].shape == (len(header.cohorts), RATES) for name in rates)
        and all(_are_trees(arrays, prefix, _width(prefix, width) + RATES) for prefix in prefixes)
        and all(_is_readable(name, values) for name, values in arrays.items())
    )


def _width(prefix: str, of_prompt: int) -> int:
    return of_prompt + len(SCORE_FACTS) if prefix.startswith("answer.") else of_prompt


def _is_readable(name: str, values: np.ndarray) -> bool:
    if name.endswith(".features"):
        return values.dtype == np.int16
    return values.dtype == np.float32 and bool(np.isfinite(values).all())


def _are_trees(arrays: Mapping[str, np.ndarray], prefix: str, columns: int) -> bool:
    """Whether these arrays are trees that compare existing columns."""
    base, features, cuts, leaves = (arrays[f"{prefix}.{part}"] for part in _PARTS)
    if features.ndim != 2 or features.size == 0 or features.shape[1] > 8:
        return False
    return (
        cuts.shape == features.shape
        and leaves.shape == (len(features), 2 ** features.shape[1])
        and base.shape == (1,)
        and 0 <= int(features.min()) <= int(features.max()) < columns
    )


def _seal(header: GainHeader, arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256(msgspec.json.encode(_fields(msgspec.structs.replace(header, seal=""))))
    for name in sorted(arrays):
        digest.update(f"{name} {arrays[name].dtype} {arrays[name].shape}".encode() + arrays[name].tobytes())
    return digest.hexdigest()[:12]
