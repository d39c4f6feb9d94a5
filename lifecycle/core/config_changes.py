"""What differs between two configurations, setting by setting."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lifecycle.core.config import Section


def differing(before: Section, after: Section, omitted: frozenset[str] = frozenset()) -> dict[str, list[Any]]:
    """The settings that differ, by dotted name: [before, after], JSON-ready; without those at the top named `omitted`.

    Sections inside are compared setting by setting, all else is one value; a setting that one of them lacks is None.
    """
    known = {name: (getattr(before, name, None), getattr(after, name, None)) for name in type(after).model_fields}
    plain = before.plain(), after.plain()
    found: dict[str, list[Any]] = {}
    for name, (old, new) in known.items():
        if name in omitted or old == new:
            continue
        if isinstance(old, Section) and isinstance(new, Section):
            found |= {f"{name}.{inner}": values for inner, values in differing(old, new).items()}
        else:
            found[name] = [settings.get(name) for settings in plain]
    return found


def said(changes: Mapping[str, Sequence[Any]]) -> str:
    """What `differing` found, in words."""
    texts = {name: [json.dumps(value) for value in values] for name, values in changes.items()}
    return ", ".join(f"{name} {before} -> {after}" for name, (before, after) in texts.items())
