"""Templates over a row's columns: jinja2 in an immutable sandbox, as for chat templates.

A template of one expression, `{{ choices.text }}`, has that expression's value, a list or a number; any other has text.
So nothing is parsed back from text: `{{ answer }}` of the text "1" stays text. A column that a row lacks is an error.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from jinja2 import StrictUndefined, TemplateError, Undefined, nodes
from jinja2.meta import find_undeclared_variables
from jinja2.sandbox import ImmutableSandboxedEnvironment

from lifecycle.text.chat import TEMPLATE_ERRORS

EXPRESSION = re.compile(r"\s*\{\{[-+]?((?:(?!\{#).)*?)[-+]?\}\}\s*", re.DOTALL)  # alone, and without a comment
ENVIRONMENT = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True)


@dataclass(frozen=True)
class Template:
    """A compiled template; `names` are the columns that it reads."""

    names: frozenset[str]
    run: Callable[[Mapping[str, Any]], Any]

    def fill(self, columns: Mapping[str, Any]) -> Any:
        """The template's value for a row; raises `ValueError`, with the row's columns, if it has none."""
        try:
            value = self.run(columns)
            return str(value) if isinstance(value, Undefined) else value  # the text of an undefined value is its error
        except TEMPLATE_ERRORS as error:
            raise ValueError(f"{error}; columns: {', '.join(columns)}") from None


@lru_cache(maxsize=256)
def compiled(source: str) -> Template:
    """Compiles a template; raises `ValueError` if it is not valid jinja2."""
    try:
        tree, run = ENVIRONMENT.parse(source), ENVIRONMENT.from_string(source).render
        written = [node for output in tree.body if isinstance(output, nodes.Output) for node in output.nodes]
        is_one = len(tree.body) == len(written) == 1 and not isinstance(written[0], nodes.TemplateData)
        if is_one and (expression := EXPRESSION.fullmatch(source)):
            run = ENVIRONMENT.compile_expression(expression[1], undefined_to_none=False)
    except TemplateError as error:
        raise ValueError(f"not valid jinja2: {error}") from None
    return Template(frozenset(find_undeclared_variables(tree)), run)
