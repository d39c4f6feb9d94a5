"""The OpenAPI document: made from the table of routes and from the schemas that read requests, so that it is true.

OpenAPI 3.1's schemas are JSON Schema 2020-12, which pydantic writes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import JsonSchemaMode, models_json_schema

from lifecycle.core.version import VERSION
from lifecycle.serving.answer_schemas import ErrorAnswer
from lifecycle.serving.body import MAX_BODY_BYTES
from lifecycle.serving.parsing import Body
from lifecycle.serving.routes import Endpoint

REFERENCES = "#/components/schemas/"
RETRY = {"Retry-After": {"description": "Seconds.", "schema": {"type": "integer"}}}
EVENT = {
    "type": "object",
    "description": "A server-sent event. Its data is JSON, but `[DONE]` at the end of completions and chats.",
    "properties": {"event": {"type": "string"}, "data": {"type": "string"}},
    "required": ["data"],
}
JSON, EVENTS = "application/json", "text/event-stream"
ERRORS = {
    400: "A field is faulty, unknown or not supported, or the texts do not fit the context.",
    401: "The key is missing or wrong.",
    403: "The key may not use the model, or not load adapters.",
    404: "There is no such model, or adapter.",
    408: "The body did not arrive in time.",
    413: f"The body is larger than {MAX_BODY_BYTES} bytes.",
    415: "The body is not `application/json`.",
    429: "The queue is full, or a limit of the key is reached.",
    500: "An error inside; the server's log has its traceback.",
    503: "The server stops, or the engine has failed.",
    504: "The answer took longer than the server allows.",
}
OF_BODIES = {408, 413, 415, 429, 503, 504}  # of routes that take one


def document(endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """The document of these routes, JSON-ready."""
    asked = [endpoint.asks for endpoint in endpoints if endpoint.asks is not None]
    answered = [ErrorAnswer, *(endpoint.answers for endpoint in endpoints)]
    kinds: list[tuple[type[BaseModel], JsonSchemaMode]] = [
        *((kind, "validation") for kind in asked),
        *((kind, "serialization") for kind in answered),
    ]
    names, schemas = models_json_schema(kinds, ref_template=REFERENCES + "{model}")
    for kind in _bodies(Body):
        if kind.__name__ in schemas["$defs"]:
            _name_unsupported(schemas["$defs"][kind.__name__], kind)
    paths = {endpoint.path.replace(":path", ""): _path(endpoint, names) for endpoint in endpoints}
    about = {"title": "lifecycle", "version": VERSION, "description": "OpenAI's API, with additions of vLLM's."}
    components = {"schemas": schemas["$defs"], "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}}
    return {"openapi": "3.1.0", "info": about, "security": [{"key": []}, {}], "paths": paths, "components": components}


def _bodies(kind: type[Body]) -> Iterator[type[Body]]:
    for below in kind.__subclasses__():
        yield below
        yield from _bodies(below)


def _name_unsupported(schema: dict[str, Any], kind: type[Body]) -> None:
    """Adds the fields that are not supported with the values that have no effect."""
    for name, values in kind.neutral.items():
        schema["properties"][name] = {"enum": [None, *values], "description": "Not supported: no other value."}


def _path(endpoint: Endpoint, names: dict[Any, Any]) -> dict[str, Any]:
    title = (endpoint.handler.__doc__ or "").strip()
    answer: dict[str, Any] = {JSON: {"schema": names[endpoint.answers, "serialization"]}}
    if endpoint.streams:
        answer[EVENTS] = {"schema": EVENT}
    operation: dict[str, Any] = {"summary": title, "operationId": getattr(endpoint.handler, "__name__", title)}
    operation["responses"] = {"200": {"description": "The answer.", "content": answer}} | _errors(endpoint, names)
    if endpoint.asks is None:
        parameter = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
        return {"get": operation | ({"parameters": [parameter]} if "{name" in endpoint.path else {})}
    body = {"schema": names[endpoint.asks, "validation"]}
    return {"post": operation | {"requestBody": {"required": True, "content": {JSON: body}}}}


def _errors(endpoint: Endpoint, names: dict[Any, Any]) -> dict[str, Any]:
    content = {JSON: {"schema": names[ErrorAnswer, "serialization"]}}
    shown = {status: text for status, text in ERRORS.items() if endpoint.asks is not None or status not in OF_BODIES}
    return {
        str(status): {"description": text, "content": content, **({"headers": RETRY} if status == 429 else {})}
        for status, text in shown.items()
    }
