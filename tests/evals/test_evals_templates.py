"""Templates over a row's columns: values, text, and what they cannot do."""

from typing import Any

import pytest

from lifecycle.evals.templates import compiled

ROW = {"question": "why?", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "key": "B", "n": "1", "is_so": True}


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("{{ choices.text }}", ["a", "b"]),
        ("{{ choices.label.index(key) }}", 1),
        ("{{- n -}}", "1"),  # text, not a number
        ("{{ is_so | int }}", 1),
        ("{{ n | int - 1 }}", 0),
        ("{{ '}}' }}", "}}"),
        (" {{ n }}", " 1"),  # text around an expression: text
        ("{{ n }}{{ n }}", "11"),
        ("Q: {{ question }}\n", "Q: why?\n"),
        ("no", "no"),
        ("{% if is_so %}{{ n }}{% endif %}", "1"),
        ("{{ n }}{# one #}", "1"),
        ("{% if topic is defined %}{{ topic }}{% endif %}{{ n }}", "1"),
    ],
)
def test_one_expression_has_its_value_and_anything_else_is_text(source: str, value: Any) -> None:
    assert compiled(source).fill(ROW) == value


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ topic }}", r"'topic' is undefined; columns: question, choices, key, n, is_so"),
        ("{{ choices.txt }}", "has no attribute 'txt'"),
        ("{{ choices.label.index('C') }}", "not in list"),
        ("{{ question.__class__ }}", "unsafe"),
        ("{{ choices.text.append('c') }}", "unsafe"),
    ],
)
def test_a_template_without_a_value_says_what_the_row_has(source: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compiled(source).fill(ROW)


def test_the_columns_that_a_template_reads() -> None:
    source = "{{ choices.label.index(key) }}{% for x in choices %}{{ x }}{% endfor %}"
    assert compiled(source).names == {"choices", "key"}
