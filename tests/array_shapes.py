"""Checks the array shapes of the package's signatures while tests run: within a call, a letter is one size.

A plugin: importing it decorates the functions of all modules whose source annotates arrays, by jaxtyping's import hook,
when these modules are imported. (Decorating every module would triple the time of the planner's search: a decorated
call costs 5 us, array or not.) Only arrays are checked, NumPy's too: placeholders that JAX puts into a tree, such as
shardings, are passed on. JAX itself is imported with the first such module: pytest-xdist's own process has none.
"""

import functools
import inspect
import re
import types
import typing
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jaxtyping
import numpy as np

if TYPE_CHECKING:
    import jax

PACKAGE = Path(__file__).parents[1] / "lifecycle"
BY_PLACE = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD


def checked(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, raising `TypeError` where an array argument or result does not have the shape that is written.

    jaxtyping has two functions for each: one takes the arguments, the other, called after it within the same sizes,
    arguments and result. The second checks the result alone.
    """
    signature = inspect.signature(function)
    if _has_array(signature.return_annotation):
        return _with_checked_result(function, signature.return_annotation)
    parameters = list(signature.parameters.values())
    hints = {known.name: known.annotation for known in parameters if _has_array(known.annotation)}
    if not hints:
        return function
    places = {known.name: place for place, known in enumerate(parameters) if known.kind in BY_PLACE}

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, hint in hints.items():
            place = places.get(name, len(args))
            value = args[place] if place < len(args) else kwargs.get(name)
            _check(hint, value, function, name)
        return function(*args, **kwargs)

    return call


def _with_checked_result(function: Callable[..., Any], hint: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        result = function(*args, **kwargs)
        _check(hint, result, function, "its result")
        return result

    return call


def _is_array(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)


def _has_array(hint: Any) -> bool:
    return _is_array(hint) or any(map(_has_array, typing.get_args(hint)))


def _check(hint: Any, value: Any, function: Callable[..., Any], name: str) -> None:
    origin: Any = typing.get_origin(hint)
    if origin is tuple and isinstance(value, tuple) and len(value) == len(typing.get_args(hint)):
        for part, element in zip(typing.get_args(hint), value, strict=True):
            _check(part, element, function, name)
    elif origin in (typing.Union, types.UnionType):
        for part in typing.get_args(hint):
            _check(part, value, function, name)
    elif _is_array(hint) and _is_plain(value) and not isinstance(value, _of_any_array(hint)):
        shape = f"{value.dtype}{list(value.shape)}"
        raise TypeError(f"{function.__qualname__}: {name} is {shape}, its signature says {hint.__name__}")


def _is_plain(value: Any) -> "typing.TypeGuard[jax.Array | np.ndarray]":
    """An array of numbers: no random key."""
    import jax
    import jax.numpy as jnp

    return isinstance(value, jax.Array | np.ndarray) and not jnp.issubdtype(value.dtype, jax.dtypes.prng_key)


@functools.cache
def _of_any_array(hint: Any) -> Any:
    """The hint for NumPy's arrays too. A computed dimension (`H*Dv`) is of any size, and integers may be unsigned."""
    import jax

    dtype: Any = jaxtyping.Integer if hint.dtype is jaxtyping.Int else hint.dtype
    dims = ("_" if re.search(r"\w[*+/-]", dim) else dim for dim in hint.dim_str.split())
    return dtype[jax.Array | np.ndarray, " ".join(dims)]


def modules() -> Iterator[str]:
    """Names of the package's modules that annotate arrays."""
    for path in PACKAGE.rglob("*.py"):
        if re.search(r"\[Array, f?\"", path.read_text("utf-8")):
            yield ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)


jaxtyping.install_import_hook(list(modules()), f"{__name__}.checked")
