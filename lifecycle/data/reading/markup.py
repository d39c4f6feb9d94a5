"""Mark-up to text: Markdown and the dicts of Python modules. Nothing is executed."""

import ast
import re
import tomllib
from collections.abc import Callable, Iterator
from typing import Any

import yaml

from lifecycle.core.strict_yaml import parse_yaml
from lifecycle.data.reading.raw import UnreadableError, license_in, plain_values

MAX_FRONT = 100_000  # characters: 5 MB of list items between two rules took YAML's reader ten seconds
_YAML_FRONT = re.compile(r"\A---[ \t]*\n(.*?)\n(?:---|\.\.\.)[ \t]*(?:\n|\Z)", re.DOTALL)
_TOML_FRONT = re.compile(r"\A\+\+\+[ \t]*\n(.*?)\n\+\+\+[ \t]*(?:\n|\Z)", re.DOTALL)


def parse_markdown(text: str) -> tuple[str, dict[str, Any]]:
    """The Markdown unchanged but without its front matter (YAML or TOML), whose plain values become metadata."""
    text = text.replace("\r\n", "\n")
    loaders: tuple[tuple[re.Pattern[str], Callable[[str], Any]], ...] = (
        (_YAML_FRONT, parse_yaml),
        (_TOML_FRONT, tomllib.loads),
    )
    for pattern, load in loaders:
        if (match := pattern.match(text)) and len(match[1]) <= MAX_FRONT:
            try:
                front = load(match[1])
            except (yaml.YAMLError, tomllib.TOMLDecodeError, ValueError, RecursionError):
                continue  # a horizontal rule looks the same
            if isinstance(front, dict):
                meta, license = plain_values(front), license_in(front.get("license"))
                return text[match.end() :], meta if license is None else meta | {"license": license}
    return text, {}


def parse_python_dict(text: str) -> Iterator[tuple[str, str]]:
    """The string values of the dict literals that a Python module assigns, by key; parsed, never executed."""
    try:
        module = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:  # MemoryError: the parser's stack is full
        raise UnreadableError("broken_python", f"not parseable as Python: {error}") from None
    for node in module.body:
        if not isinstance(node, ast.Assign | ast.AnnAssign) or not isinstance(node.value, ast.Dict):
            continue
        for key, value in zip(node.value.keys, node.value.values, strict=True):
            match key, value:
                case ast.Constant(value=str(name)), ast.Constant(value=str(content)):
                    yield name, content
