"""The changes of an edit of the YAML, and which of them only Envoy can carry out."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import msgspec

from extproc.config.load import Config
from extproc.config.schema import BACKGROUND_FILE, POLICY_FILE, Intent, PolicyFile
from extproc.config.strict_yaml import line_of
from extproc.routing.centroid_file import CENTROIDS_FILE
from extproc.routing.gain_file import GAINS_FILE
from extproc.settings import Tier

# A longer value says little in a line of the log.
_MOST_CHARS = 60
# Only their number is shown: texts are long, and a URL of `state` may have a password.
_TEXTS, _SECRETS = ("utterances", "background"), ("state",)

# Returns a value that is equal for two configurations if Envoy needs no update between them.
Rendered = Callable[[Config], object]
_Apply = Callable[[Config], Config]


class Change(msgspec.Struct, frozen=True):
    """One changed value."""

    text: str  # as in "faq.tier small -> large"
    file: str
    line: int
    key: str
    needs_envoy: bool = False

    @property
    def place(self) -> str:
        """The file, the line and the key, as in `policy.yaml:21 url`."""
        return f"{self.file}:{self.line} {self.key}"


def changes_between(old: Config, new: Config, rendered: Rendered | None = None) -> list[Change]:
    """List the differences in the order of the files. Without `rendered`, no change needs Envoy."""
    before = rendered(old) if rendered is not None else None
    changes = []
    for apply, group in _groups(old, new):
        needed = rendered is not None and bool(group) and _differs(before, rendered, apply, old)
        changes += [msgspec.structs.replace(change, needs_envoy=needed) for change in group]
    return changes


def describe(changes: Sequence[Change]) -> str:
    """Return one line: the changes, and the places of those that need Envoy."""
    texts = ", ".join(change.text for change in changes)
    places = ", ".join(dict.fromkeys(change.place for change in changes if change.needs_envoy))
    return f"{texts}; needs Envoy: {places}" if places else texts


def _differs(before: object, rendered: Rendered, apply: _Apply, old: Config) -> bool:
    try:
        return rendered(apply(old)) != before
    except (
        LookupError,
        ValueError,
        StopIteration,
    ):  # this change cannot be rendered alone
        return True


def _groups(old: Config, new: Config) -> Iterator[tuple[_Apply, list[Change]]]:
    """Yield the changes of each key, and a function that makes only these changes."""
    yield from _policy_groups(old, new)
    yield from _intent_groups(old, new)
    yield from _app_groups(old, new)
    if old.background != new.background:
        yield (
            lambda config: config,
            [_texts_changed(BACKGROUND_FILE, 1, "background", old.background, new.background)],
        )
    if (old.fitted and old.fitted.header) != (new.fitted and new.fitted.header):
        what = f"{CENTROIDS_FILE} {'removed' if new.fitted is None else 'changed'}"
        yield lambda config: config, [Change(what, CENTROIDS_FILE, 1, "centroids")]
    if (old.gains and old.gains.header) != (new.gains and new.gains.header):
        what = f"{GAINS_FILE} {'removed' if new.gains is None else 'changed'}"
        yield lambda config: config, [Change(what, GAINS_FILE, 1, "gains")]


def _policy_groups(old: Config, new: Config) -> Iterator[tuple[_Apply, list[Change]]]:
    before, after = old.policy, new.policy
    same_tiers = [tier.name for tier in before.tiers] == [tier.name for tier in after.tiers]
    for key in PolicyFile.__struct_fields__:
        if key == "tiers" and same_tiers:
            for i, (one, other) in enumerate(zip(before.tiers, after.tiers, strict=True)):
                yield from _tier_groups(new, i, one, other)
            continue
        values = (_plain(getattr(before, key)), _plain(getattr(after, key)))
        if values[0] != values[1]:
            changes = list(_changes(new, POLICY_FILE, key, "", f".{key}", *values))
            yield _with_policy(**{key: getattr(after, key)}), changes


def _tier_groups(new: Config, i: int, one: Tier, other: Tier) -> Iterator[tuple[_Apply, list[Change]]]:
    for key in Tier.__struct_fields__:
        values = (_plain(getattr(one, key)), _plain(getattr(other, key)))
        if values[0] != values[1]:
            yield (
                _with_tier(i, **{key: getattr(other, key)}),
                list(_changes(new, POLICY_FILE, key, f"{one.name}.", f".tiers[{i}].{key}", *values)),
            )


def _intent_groups(old: Config, new: Config) -> Iterator[tuple[_Apply, list[Change]]]:
    before, after = ({intent.intent: intent for intent in config.intents} for config in (old, new))
    for name in before.keys() - after.keys():
        yield _without(name), [Change(f"{name} removed", old.files[name], 1, "intent")]
    for name, intent in after.items():
        file = new.files[name]
        if name not in before:
            yield _with_intent(intent), [Change(f"{name} added", file, 1, "intent")]
            continue
        for key in Intent.__struct_fields__:
            values = (_plain(getattr(before[name], key)), _plain(getattr(intent, key)))
            if values[0] != values[1]:
                changed = msgspec.structs.replace(before[name], **{key: getattr(intent, key)})
                yield _with_intent(changed), list(_changes(new, file, key, f"{name}.", f".{key}", *values))


def _app_groups(old: Config, new: Config) -> Iterator[tuple[_Apply, list[Change]]]:
    """Changes in the own files of an app. Those of its keys are changes of the policy."""
    for name, app in new.apps.items():
        before = old.apps.get(name)
        if before is None or not new.policy.apps[name].intents:
            continue
        line = line_of(new.lines, POLICY_FILE, f".apps.{name}.intents")
        if before.intents != app.intents:
            yield _with_app(name, app), [Change(f"apps.{name}: its intents changed", POLICY_FILE, line, "intents")]
        elif _beside_intents(before) != _beside_intents(app):
            what = f"apps.{name}: its background or its fitted files changed"
            yield lambda config: config, [Change(what, POLICY_FILE, line, "intents")]


def _beside_intents(config: Config) -> tuple[object, ...]:
    files = (config.fitted, config.gains)
    return config.background, *(file.header if file is not None else None for file in files)


def _with_app(name: str, app: Config) -> _Apply:
    return lambda config: msgspec.structs.replace(config, apps={**config.apps, name: app})


def _with_policy(**values: Any) -> _Apply:
    return lambda config: msgspec.structs.replace(config, policy=msgspec.structs.replace(config.policy, **values))


def _with_tier(i: int, **values: Any) -> _Apply:
    def apply(config: Config) -> Config:
        tiers = list(config.policy.tiers)
        tiers[i] = msgspec.structs.replace(tiers[i], **values)
        return _with_policy(tiers=tuple(tiers))(config)

    return apply


def _with_intent(intent: Intent) -> _Apply:
    def apply(config: Config) -> Config:
        others = [other for other in config.intents if other.intent != intent.intent]
        return msgspec.structs.replace(config, intents=(*others, intent))

    return apply


def _without(name: str) -> _Apply:
    return lambda config: msgspec.structs.replace(
        config, intents=tuple(intent for intent in config.intents if intent.intent != name)
    )


def _plain(value: Any) -> Any:
    """Return the value as YAML would have it. Lists of objects with a name become objects by name."""
    plain = msgspec.to_builtins(value)
    named = (
        isinstance(plain, (list, tuple)) and bool(plain) and all(isinstance(v, dict) and "name" in v for v in plain)
    )
    return {v["name"]: v for v in plain} if named else plain


def _changes(
    new: Config, file: str, key: str, prefix: str, path: str, old_value: Any, new_value: Any
) -> Iterator[Change]:
    """Yield one change for each value that differs, below objects that both have."""
    line = line_of(new.lines, file, path)
    if key in _TEXTS:
        yield _texts_changed(file, line, f"{prefix}{key}", old_value, new_value)
    elif isinstance(old_value, Mapping) and isinstance(new_value, Mapping):
        for name in [*old_value, *(name for name in new_value if name not in old_value)]:
            values = (old_value.get(name), new_value.get(name))
            if values[0] != values[1]:
                yield from _changes(new, file, name, f"{prefix}{key}.", f"{path}.{name}", *values)
        if list(old_value) != list(new_value) and old_value.keys() == new_value.keys():
            yield Change(
                f"{prefix}{key} {_shown(key, [*old_value])} -> {_shown(key, [*new_value])}", file, line, key
            )
    else:
        yield Change(f"{prefix}{key} {_shown(key, old_value)} -> {_shown(key, new_value)}", file, line, key)


def _texts_changed(file: str, line: int, name: str, old: Sequence[str], new: Sequence[str]) -> Change:
    added, removed = len(set(new) - set(old)), len(set(old) - set(new))
    what = f"{name}: {added} added, {removed} removed" if added or removed else f"{name}: in another order"
    return Change(what, file, line, name.rpartition(".")[2])


def _shown(key: str, value: Any) -> str:
    if value is None:
        return "none"
    if key in _SECRETS:
        return "..." if value else "none"
    if isinstance(value, Mapping):
        return "{...}"
    if isinstance(value, float):
        return f"{value:g}"
    text = value if isinstance(value, str) and value else msgspec.json.encode(value).decode()
    return text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}..."
