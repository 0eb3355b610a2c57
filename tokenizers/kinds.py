"""Settings with a `kind` to the dataclass of that kind, and back."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar


@dataclass(frozen=True)
class Kind:
    """One of several kinds of settings."""

    kind: ClassVar[str]


K = TypeVar("K", bound=Kind)


def of_kind(kinds: Mapping[str, type[K]], settings: Mapping[str, Any], key: str) -> K:
    """The dataclass that `kind` in the settings names, made of the others.

    key: where the settings stand in the configuration, for messages
    ValueError for an unknown kind, a setting that it does not have or that is missing, or a value that cannot be. A
    setting with a default may be missing: files that were written before there was such a setting are read.
    """
    kind = str(settings.get("kind"))
    if kind not in kinds:
        raise ValueError(f"{key}.kind={kind} is unknown: there is {', '.join(kinds)}")
    fields = dataclasses.fields(kinds[kind])
    known = [field.name for field in fields]
    for name in settings:
        if name not in known and name != "kind":
            raise ValueError(f"{key}.{name} is no setting of {kind}, which takes {', '.join(known)}")
    for field in fields:
        if field.name not in settings and field.default is dataclasses.MISSING:
            raise ValueError(f"{key}.{field.name} is missing: {kind} needs it")
    return kinds[kind](**{name: settings[name] for name in known if name in settings})


def kind_settings(config: Kind) -> dict[str, Any]:
    """What `of_kind` makes the same dataclass of."""
    return {"kind": config.kind, **dataclasses.asdict(config)}
