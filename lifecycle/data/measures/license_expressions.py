"""Licences as SPDX writes them: `MIT OR (Apache-2.0 AND CC-BY-4.0)`, read with their brackets, AND before OR.

Identifiers count in any case, as SPDX has it (2.3, annex D): data sets on hubs name theirs `mit` and `cc-by-4.0`.
"""

import re
from collections.abc import Callable, Sequence

from lifecycle.data.config import UNKNOWN

_TOKEN = re.compile(r"([()]|(?<=[\s)])(?:AND|OR)(?=[\s(]))")


def license_place(expression: str, allowed: Sequence[str]) -> int:
    """The place of an expression in a list of licences; `len(allowed)` for one that is not in it, one more for the
    unknown one. Of a choice the best licence counts, of several that all apply the worst.

    What cannot be read as an expression is the name of a licence.
    """
    names = [name.casefold() for name in allowed]

    def place(name: str) -> int:
        """Of one licence."""
        if (name := name.casefold()) in names:
            return names.index(name)
        return len(names) + (name == UNKNOWN)

    found = None if expression.casefold() in names else _expressed(expression, place)
    return place(expression) if found is None else found


def all_apply(licenses: Sequence[str]) -> str:
    """The expression of several that all apply; a choice among them keeps its bounds."""
    if len(licenses) == 1:
        return licenses[0]
    return " AND ".join(f"({name})" if "OR" in _TOKEN.split(name) else name for name in licenses)


def _expressed(expression: str, place: Callable[[str], int]) -> int | None:
    """The place of an expression, or None if a bracket or a licence is missing; without recursion, because data may
    have any number of brackets."""
    open_groups: list[list[list[int]]] = [[[]]]  # of each its choices, of each choice the places of what applies
    for token in _TOKEN.split(expression):
        if token == "(":
            open_groups.append([[]])
        elif token == ")":
            found = _of_choices(open_groups.pop())
            if found is None or not open_groups:
                return None
            open_groups[-1][-1].append(found)
        elif token == "OR":
            open_groups[-1].append([])
        elif token != "AND" and token.strip():
            open_groups[-1][-1].append(place(token.strip()))
    return _of_choices(open_groups[0]) if len(open_groups) == 1 else None


def _of_choices(choices: list[list[int]]) -> int | None:
    return min(map(max, choices)) if all(choices) else None
