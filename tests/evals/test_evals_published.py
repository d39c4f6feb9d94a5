"""docs/evaluation.md: each task reads a row of its data set's published format. The rows are made up."""

import re
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.config import load_config
from lifecycle.evals.bundle import BundleTasksConfig
from lifecycle.evals.kinds.generation import GenerationTask
from lifecycle.evals.tasks import TaskConfig

PAGE = Path(__file__).parents[2] / "docs/evaluation.md"
FENCE = "`" * 3
BLOCKS = re.findall(rf"{FENCE}yaml\n(.*?){FENCE}", PAGE.read_text(encoding="utf-8"), re.DOTALL)

ARC = {"id": "x_1", "question": "What is wet?", "choices": {"text": ["sand", "rain"], "label": ["A", "B"]}}
EXPECTED: list[tuple[str, dict[str, Any], dict[str, Any]]] = [
    ("arc_easy", ARC | {"answerKey": "B"},
     {"query": "Question: What is wet?\nAnswer:", "choices": ["sand", "rain"], "gold": 1}),
    ("arc_easy", ARC | {"choices": {"text": ["sand", "rain"], "label": ["1", "2"]}, "answerKey": "1"}, {"gold": 0}),
    ("piqa", {"goal": "dry a cup", "sol1": "use a towel", "sol2": "use a lake", "label": 0},
     {"query": "Question: dry a cup\nAnswer:", "choices": ["use a towel", "use a lake"], "gold": 0}),
    ("boolq", {"question": "is rain wet", "title": "Rain", "answer": True, "passage": "Rain is wet."},
     {"query": "Rain is wet.\nQuestion: is rain wet?\nAnswer:", "choices": ["no", "yes"], "gold": 1}),
    ("winogrande",
     {"sentence": "Ann fed Bo because _ was hungry.", "option1": "Ann", "option2": "Bo", "answer": "2"},
     {"contexts": ["Ann fed Bo because Ann", "Ann fed Bo because Bo"], "continuation": "was hungry.", "gold": 1}),
    ("lambada", {"text": "the old dog saw the cat and barked at the cat"},
     {"prompt": "the old dog saw the cat and barked at the", "answer": "cat"}),
    ("gsm8k", {"question": "What is 6 times 7?", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"},
     {"prompt": "Question: What is 6 times 7?\nAnswer:", "answer": "6 * 7 = <<6*7=42>>42\n#### 42"}),
    ("svamp", {"Body": "Ann has 3 pens.", "Question": "She buys 2. How many?", "Answer": 5.0},
     {"prompt": "Question: Ann has 3 pens. She buys 2. How many?\nAnswer:", "answer": "The answer is 5.0."}),
    ("winogrande:1", {"context_options": ["x Ann", "x Bo"], "continuation": "sat.", "gold": 0},
     {"contexts": ["x Ann", "x Bo"], "continuation": "sat.", "gold": 0}),
    ("svamp:1", {"context": "1 and 1?", "chain_of_thought": "", "answer": "2"},
     {"prompt": "Question: 1 and 1?\nAnswer:", "answer": "2"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, TaskConfig]:
    """The page's tasks by name; a name's second task ends in `:1`."""
    found: dict[str, TaskConfig] = {}
    for number, block in enumerate(BLOCKS):
        path = tmp_path_factory.mktemp("page") / f"{number}.yaml"
        path.write_text(block, encoding="utf-8")
        for task in load_config(BundleTasksConfig, path).tasks:
            found[f"{task.name}:1" if task.name in found else task.name] = task
    return found


def test_each_task_of_the_page_is_checked(tasks: dict[str, TaskConfig]) -> None:
    assert set(tasks) == {name for name, _, _ in EXPECTED}


@pytest.mark.parametrize(("name", "row", "expected"), EXPECTED)
def test_a_published_row_is_mapped(tasks: dict[str, TaskConfig], name: str, row: Any, expected: Any) -> None:
    task = tasks[name]
    columns = task.mapped(row)
    assert task.problem(columns) == ""
    assert {column: columns[column] for column in expected} == expected
    assert set(task.read_columns) <= set(row)


def test_numbers_are_compared_by_value(tasks: dict[str, TaskConfig]) -> None:
    gsm8k = tasks["gsm8k"]
    assert isinstance(gsm8k, GenerationTask)
    for output, is_right in {
        " So 40 + 2 = 42.": True, "#### 42.00": True, "$42": True, "16-42": True, "42 or 43": False, "-42": False,
        "1,042": False, "none": False,
    }.items():  # fmt: skip
        [verdict] = gsm8k.verdicts([output], ["6 * 7 = <<6*7=42>>42\n#### 42"])
        assert verdict.score == float(is_right)
    assert gsm8k.verdicts(["It is 1,234,567.50 dollars."], ["#### 1234567.5"])[0].score == 1.0
    assert "has no number" in gsm8k.problem({"prompt": "p", "answer": "many"})
