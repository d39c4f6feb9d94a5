"""A setting that is one section, or several by name."""

from typing import Any

from pydantic import TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

from lifecycle.core.config import Section, is_named


def one_or_named(section: type[Section]) -> WrapValidator:
    """For a field `S | dict[str, S]`: one section, or several by name; errors refer to the form that was meant."""
    mapping: Any = dict
    several = TypeAdapter[Any](mapping[str, section])

    def read(tree: Any, _: ValidatorFunctionWrapHandler) -> Any:
        """The section, or the sections by name."""
        if is_named(section, tree):
            return several.validate_python(tree)
        return section.model_validate(tree)

    return WrapValidator(read)
