"""Held-out questions for the samples: the same ones in every run, in every form of row."""

import json
import random
from pathlib import Path
from typing import Any

from report_run import MODEL, TOKENIZER, tiny_model, write_questions

from lifecycle.report.samples import MAX_ANSWER, NUM_QUESTIONS, held_out_questions


def test_questions_do_not_depend_on_the_order_of_rows(tmp_path: Path) -> None:
    model, path = tiny_model(), tmp_path / "first.jsonl"
    write_questions(path)
    lines = path.read_text().splitlines(keepends=True)
    random.Random(0).shuffle(lines)
    (tmp_path / "rows.jsonl").write_text("".join(lines))
    questions = held_out_questions(path, model)
    assert questions == held_out_questions(tmp_path / "rows.jsonl", model)
    assert len(questions) == NUM_QUESTIONS
    assert all(len(question.ids) + MAX_ANSWER <= MODEL.max_seq_len for question in questions)


def test_questions_of_every_form_of_row(tmp_path: Path) -> None:
    turns = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "a"},
    ]
    rows: list[dict[str, Any]] = [
        {"messages": [*turns, {"role": "user", "content": "more"}]},
        {"prompt": turns[:2], "completion": "a"},
        {"prompt": "1 + 1 =", "completion": " 2"},
        {"text": "nothing is asked"},
        {"messages": turns[2:]},
        {"prompt": "x" * MODEL.max_seq_len, "completion": "too long"},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = tiny_model()
    questions = held_out_questions(path, model)
    assert sorted((q.text, q.reference) for q in questions) == [("1 + 1 =", " 2"), ("q", "a"), ("q", "a")]
    plain = next(q for q in questions if q.reference == " 2")
    assert plain.ids == [TOKENIZER.bos_id, *b"1 + 1 ="]
    chat = next(q for q in questions if q.text == "q")
    assert chat.ids == model.template.render(turns[:2], add_generation_prompt=True).ids
