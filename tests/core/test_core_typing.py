"""Shape letters: those of the package's signatures are those of the legend in `core/typing.py`."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import jaxtyping
import pytest

import lifecycle
from lifecycle.core import typing as legend
from lifecycle.core.typing import Array, Float
from lifecycle.kernels.token_statistics import token_logprobs
from tests.array_shapes import checked

ARRAY_TYPES = {"Float", "Int", "Bool", "Shaped"}


def shapes(module: ast.Module) -> Iterator[str]:
    """The shape strings of `Float[Array, "B T"]` and its kind, in quoted annotations too."""
    for node in ast.walk(module):
        if isinstance(node, ast.Subscript) and isinstance(node.value, ast.Name) and node.value.id in ARRAY_TYPES:
            assert isinstance(node.slice, ast.Tuple)
            shape = node.slice.elts[1]
            assert isinstance(shape, ast.Constant) and isinstance(shape.value, str)
            yield shape.value
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from re.findall(r"\b(?:Float|Int|Bool|Shaped)\[Array, ['\"]([^'\"]*)['\"]\]", node.value)


def letters(shape: str) -> set[str]:
    """The letters of a shape's dimensions: not numbers, `*names` of several dimensions, and words."""
    names = {name for dim in shape.split() if dim[0] != "*" for name in re.findall(r"[A-Za-z]\w*", dim)}
    return {name for name in names if not (name.islower() and len(name) > 2)}


def test_every_letter_of_a_signature_has_an_entry_in_the_legend_and_every_entry_a_use():
    used: dict[str, str] = {}
    for path in sorted(Path(lifecycle.__file__).parent.rglob("*.py")):
        for shape in shapes(ast.parse(path.read_text())):
            used |= dict.fromkeys(letters(shape), f"{path.name}: {shape!r}")
    assert legend.__doc__ is not None
    rows = [line for line in legend.__doc__.splitlines() if line.startswith("| `")]
    cells = [cell for row in rows for cell in row.split("|")[1::2]]
    entries = {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}
    assert {letter: where for letter, where in used.items() if letter not in entries} == {}
    assert entries - used.keys() == set()


def test_arrays_that_are_not_as_a_signature_says_are_errors_in_tests() -> None:
    hidden, table, targets = jnp.zeros((2, 3, 8)), jnp.zeros((5, 8)), jnp.zeros((2, 3), jnp.int32)
    assert token_logprobs(hidden, table, targets).shape == (2, 3)
    with pytest.raises(TypeError, match="head"):
        token_logprobs(hidden, jnp.zeros((5, 7)), targets)
    with pytest.raises(TypeError, match="targets"):
        token_logprobs(hidden, table, jnp.zeros((2, 3)))


@jaxtyping.jaxtyped(typechecker=checked)
def cut(array: Float[Array, " N"], size: int, other: Float[Array, " N"] | None = None) -> Float[Array, " N"]:
    return array[:size]


def test_a_result_has_the_sizes_of_the_arguments() -> None:
    assert cut(jnp.ones(3), 3).shape == cut(jnp.ones(3), other=jnp.zeros(3), size=3).shape == (3,)
    with pytest.raises(TypeError, match="return value"):
        cut(jnp.ones(3), 2)
    with pytest.raises(TypeError, match="other"):
        cut(jnp.ones(3), 3, other=jnp.zeros(2))
