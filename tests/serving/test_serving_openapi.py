"""The OpenAPI document is true: of routes, of bodies, of answers. `benchmarks/fuzz.py` draws thousands of requests."""

import json
from typing import Any

import httpx
import pytest
from serving_server import Running
from starlette.routing import Route

from lifecycle.serving.app import create_app
from lifecycle.serving.config import ServeConfig
from lifecycle.serving.desk import Desk
from lifecycle.serving.keys import KeyRing
from lifecycle.serving.openapi import document
from lifecycle.serving.parsing import Body
from lifecycle.serving.routes import Endpoint, endpoints

ENDPOINTS = endpoints(Desk({}, KeyRing(), (), 1.0))
WORK: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": "a", "max_tokens": 3, "logprobs": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 3, "logprobs": True},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/embeddings": {"input": ["a", "b"]},
    "/v1/score": {"text_1": "a", "text_2": ["b", "c"]},
    "/v1/rerank": {"query": "a", "documents": ["b", "c"]},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [65]},
}


@pytest.fixture(scope="module")
def described(server: Running) -> dict[str, Any]:
    return httpx.get(f"{server.base}/openapi.json").json()


def test_all_routes_of_the_api_are_in_the_document(described: dict[str, Any]) -> None:
    routes = [route for route in create_app({}, ServeConfig()).routes if isinstance(route, Route)]
    posts = {route.path for route in routes if "POST" in (route.methods or ())}
    served = posts | {route.path.replace(":path", "") for route in routes if route.path.startswith("/v1")}
    assert described["paths"].keys() == served and len(served) == len(ENDPOINTS)
    assert described["openapi"].startswith("3.1") and described == json.loads(json.dumps(document(ENDPOINTS)))
    operations = [operation for path in described["paths"].values() for operation in path.values()]
    assert all(operation["summary"] for operation in operations)
    assert len({operation["operationId"] for operation in operations}) == len(operations)


def references(tree: Any) -> set[str]:
    if isinstance(tree, dict):
        own = {tree["$ref"]} if isinstance(tree.get("$ref"), str) else set()
        return own.union(*(references(value) for value in tree.values()))
    return set().union(*(references(value) for value in tree)) if isinstance(tree, list) else set()


def test_every_reference_has_its_schema_and_every_schema_is_used(described: dict[str, Any]) -> None:
    names = {f"#/components/schemas/{name}" for name in described["components"]["schemas"]}
    assert references(described) == names


@pytest.mark.parametrize("endpoint", [own for own in ENDPOINTS if own.asks], ids=lambda own: own.path)
def test_a_body_s_schema_has_the_fields_that_are_read(described: dict[str, Any], endpoint: Endpoint) -> None:
    """Those that are read, and those that are refused unless their value has no effect; and no others."""
    assert endpoint.asks is not None and issubclass(endpoint.asks, Body)
    content = described["paths"][endpoint.path]["post"]["requestBody"]["content"]["application/json"]
    schema = described["components"]["schemas"][content["schema"]["$ref"].rsplit("/", 1)[1]]
    assert schema["additionalProperties"] is False
    assert schema["properties"].keys() == endpoint.asks.model_fields.keys() | endpoint.asks.neutral.keys()
    for name, values in endpoint.asks.neutral.items():
        assert schema["properties"][name]["enum"] == [None, *values]


@pytest.mark.parametrize("path", WORK)
def test_answers_are_as_the_document_says(server: Running, path: str) -> None:
    kind = next(own.answers for own in ENDPOINTS if own.path == path)
    answer = server.post(path, model="production", **WORK[path])
    assert answer.status_code == 200, answer.text
    kind.model_validate_json(answer.content, strict=True)


def test_models_are_as_the_document_says(server: Running) -> None:
    for path, kind in ((own.path, own.answers) for own in ENDPOINTS if own.asks is None):
        kind.model_validate_json(
            httpx.get(f"{server.base}{path.replace('{name:path}', 'production')}").content, strict=True
        )
