"""From a body's bytes to a request of its kind; an error names the field at fault.

What must hold: nothing is silently ignored. An unknown field is an error, so is one that is given twice, and so is one
that this server does not support, unless its value has no effect.
"""

import json
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from lifecycle.serving.errors import RequestError


class Body(BaseModel):
    """A JSON object of a request; types are those of JSON, unconverted.

    `neutral` has fields of the API that are not supported, and the values of them that have no effect.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)
    neutral: ClassVar[Mapping[str, tuple[Any, ...]]] = {}

    @model_validator(mode="before")
    @classmethod
    def _refuse_unsupported(cls, body: Any) -> Any:
        if not cls.neutral or not isinstance(body, Mapping):
            return body
        for name in body.keys() & cls.neutral.keys():
            value = body[name]
            if value is not None and not any(_is_same(value, neutral) for neutral in cls.neutral[name]):
                raise RequestError(400, f"{name} is not supported by this server", name, "unsupported_parameter")
        return {name: value for name, value in body.items() if name not in cls.neutral}


def _is_same(value: Any, neutral: Any) -> bool:
    """Equality as in JSON, in which `true` is not 1."""
    return value == neutral and isinstance(value, bool) == isinstance(neutral, bool)


def parse[R: Body](kind: type[R], body: bytes) -> R:
    """Reads a JSON body; raises `RequestError` naming the field at fault."""
    try:
        request = kind.model_validate_json(body)
    except ValidationError as error:
        raise _explain(error) from None
    json.loads(body, object_pairs_hook=_require_unique)  # of two values pydantic silently takes the last
    return request


def _require_unique(pairs: list[tuple[str, Any]]) -> None:
    names = [name for name, _ in pairs]
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise RequestError(400, f"the body has {double} twice in one object", double, "invalid_value")


def _explain(error: ValidationError) -> RequestError:
    """The error for the issue that says most. A value of a union has issues for each of its members: of members of its
    type rather than of another, then the most deeply nested one."""
    issues = error.errors(include_url=False, include_context=False)
    issue = max(reversed(issues), key=lambda i: (not i["type"].endswith("_type"), len(i["loc"])))
    known = set(_field_names(Body))  # pydantic's other location entries name a type of a union
    is_field = [isinstance(part, int) or part in known or issue["type"] == "extra_forbidden" for part in issue["loc"]]
    fields = (str(part) for part, shown in zip(issue["loc"], is_field, strict=True) if shown)
    where = ".".join(part for part, _ in groupby(fields))  # the name of a union's member may be that of its field
    if issue["type"] == "json_invalid":
        return RequestError(400, f"the body is not valid JSON: {issue['msg'].removeprefix('Invalid JSON: ')}")
    if issue["type"] == "extra_forbidden":
        return RequestError(400, f"unrecognized request argument: {where}", where, "unknown_parameter")
    if issue["type"] == "missing":
        return RequestError(400, f"missing required parameter: {where}", where, "missing_required_parameter")
    return RequestError(400, f"{where or 'body'}: {issue['msg']}", where or None, "invalid_value")


def _field_names(kind: type[Body]) -> Iterator[str]:
    """Of all bodies and their parts, as they are sent."""
    yield from (field.alias or name for name, field in kind.model_fields.items())
    for below in kind.__subclasses__():
        yield from _field_names(below)
