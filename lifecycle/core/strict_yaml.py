"""YAML of plain values: no key twice, no dates, no binary data, and no more nodes than a person writes.

`yaml.safe_load` silently takes the last of two values, turns 2026-11-28 into a date, and writes aliases of aliases out
into billions of nodes.
"""

from collections.abc import Hashable
from typing import Any

import yaml

MAX_NODES = 100_000  # with every alias written out

_TIMESTAMP, _BINARY = "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:binary"


class _Loader(yaml.SafeLoader):
    """Reads like `safe_load`, but rejects a duplicate key; dates stay text."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping of a node; raises for a key that it has twice."""
        keys = [key for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        first: dict[Any, yaml.Node] = {}
        for key in keys:
            name = self.construct_object(key, deep=True)
            if not isinstance(name, Hashable):
                raise yaml.MarkedYAMLError(problem="a list or mapping as a key", problem_mark=key.start_mark)
            if name in first:
                before = first[name].start_mark.line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"the key {name!r} was given in line {before} already; keep one of them",
                    problem_mark=key.start_mark,
                )
            first[name] = key
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag not in (_TIMESTAMP, _BINARY)
}


def parse_yaml(text: str) -> Any:
    """The value of a YAML document; raises `yaml.YAMLError`."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        if _size(node, {}) > MAX_NODES:
            raise yaml.YAMLError(f"more than {MAX_NODES:,} values, aliases written out")
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.YAMLError("nested too deeply") from None
    finally:
        loader.dispose()


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """The number of nodes below and including this one; a node with several aliases counts for each."""
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1  # while it is being counted: a node that contains itself is too large
        children = [part for pair in node.value for part in pair] if isinstance(node, yaml.MappingNode) else node.value
        below = children if isinstance(node, yaml.CollectionNode) else ()
        known[id(node)] = 1 + sum(_size(child, known) for child in below)
    return known[id(node)]
