"""Verifiers of texts, and that patterns which take forever end."""

from typing import Any

import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.evals.verifiers.registry import VERIFIERS
from lifecycle.evals.verifiers.texts import Exact, JsonSchema, LastNumber, Regex

SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}


def test_a_catastrophic_pattern_ends_and_others_are_scored() -> None:
    outputs = ["a" * 40 + "b", "id: 12", "id: x"]
    found = Regex().verdicts(outputs, [r"^(a+)+$", r"id: \d+$", r"id: \d+$"])
    assert [(one.score, one.fault) for one in found] == [(0.0, "CPU time"), (1.0, ""), (0.0, "")]
    one_pattern = Regex(pattern=r"^\d+$")
    assert one_pattern.columns == ()
    assert [one.score for one in one_pattern.verdicts(["12", "x"], [one_pattern.gold({})] * 2)] == [1.0, 0.0]
    assert "not a regular expression" in Regex().problem("(")
    with pytest.raises(ConfigError, match="not a regular expression"):
        validate(Regex, {"pattern": "("})


@pytest.mark.parametrize(
    ("output", "schema", "expected"),
    [
        ('{"n": 1}', SCHEMA, 1.0), ('```json\n{"n": 1}\n```', SCHEMA, 1.0), ('{"n": "1"}', SCHEMA, 0.0),
        ("{", SCHEMA, 0.0),
        ('{"n": 1} and more', SCHEMA, 0.0), ("NaN", {"type": "number"}, 0.0), ("1", '{"type": "integer"}', 1.0),
        ("[" * 100_000, SCHEMA, 0.0),
    ],
)  # fmt: skip
def test_json_is_validated(output: str, schema: Any, expected: float) -> None:
    assert JsonSchema().problem(schema) == ""
    assert [one.score for one in JsonSchema().verdicts([output], [schema])] == [expected]


def test_a_faulty_schema_is_told_where_it_stands() -> None:
    [verdict] = JsonSchema().verdicts(["1"], [{"type": "no such"}])
    assert verdict.score == 0.0
    assert "SchemaError" in verdict.fault
    with pytest.raises(ConfigError, match="no JSON schema"):
        whole = validate(JsonSchema, {"schema": {"type": "no such"}})
        whole.verdicts(["1"], [whole.gold({})])
    [elsewhere] = JsonSchema().verdicts(["1"], [{"$ref": "http://127.0.0.1:9/schema.json"}])
    assert elsewhere.score == 0.0
    assert elsewhere.fault
    assert "object" in JsonSchema().problem("[1]")
    assert "not a JSON schema" in JsonSchema().problem(3)


def test_texts_and_numbers() -> None:
    assert [one.score for one in Exact(ignore_case=True).verdicts([" Blue\n", "red"], ["blue", "blue"])] == [1.0, 0.0]
    assert LastNumber().verdicts(["so $1,234.50."], ["1234.5"])[0].score == 1.0
    assert "no number" in LastNumber().problem("many")


@pytest.mark.parametrize("name", VERIFIERS)
def test_a_verifier_of_nothing_says_nothing(name: str) -> None:
    assert VERIFIERS[name]().verdicts([], []) == []
