"""What transformers makes of conversations by chat templates. Run with transformers 5.24:

python tests/golden/make_template_golden.py                   # makes templates.json, of the templates in templates/
python tests/golden/make_template_golden.py OUT SPECIALS      # those of the installed TRL, with these special tokens

For each template and case (`NAME`, or `NAME/open` with the generation prompt): the hash of the text, or all of it, and
what is learned: the texts of the tokens that the template marks, else what the conversation has beyond its prompt, if
it ends with an answer: TRL's mask of a completion.
"""
# pyrefly: ignore-errors[missing-import]

import hashlib
import json
import sys
import tempfile
from datetime import datetime
from importlib.util import find_spec
from itertools import groupby, takewhile
from pathlib import Path
from typing import Any

import jinja2
from conversations import CONVERSATIONS, NAMES, SPECIALS, Case, tokenizer_json
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils

FOLDER = Path(__file__).parent


class FixedDate(datetime):
    """The day that templates are told."""

    @classmethod
    def now(cls, tz: Any = None) -> "FixedDate":
        return cls(2024, 7, 26)


def learned(tokenizer: Any, case: Case, is_open: bool, row: Any) -> list[str] | None:
    messages, tools, variables = case
    ids, mask = row["input_ids"], row["assistant_masks"]
    if "endgeneration" not in tokenizer.chat_template:
        if is_open or messages[-1]["role"] != "assistant":
            return None
        prompt = tokenizer.apply_chat_template(messages[:-1], tools=tools, add_generation_prompt=True, **variables)[
            "input_ids"
        ]
        shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(prompt, ids, strict=False))))
        mask = [number >= shared for number in range(len(ids))]
    runs = groupby(zip(ids, mask, strict=True), key=lambda pair: pair[1])
    return [tokenizer.decode([token for token, _ in run]) for is_said, run in runs if is_said]


def applied(tokenizer: Any, case: Case, is_open: bool) -> dict[str, Any]:
    messages, tools, variables = case
    given = {"tools": tools, "add_generation_prompt": is_open, **variables}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
        row = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **given)
        return {"text": text, "ids": row["input_ids"], "said": learned(tokenizer, case, is_open, row)}
    except (jinja2.TemplateError, TypeError, AttributeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}


def cases(source: str, specials: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(tokenizer_json(specials), file)
        file.flush()
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=file.name, chat_template=source, **NAMES)
    return {
        f"{name}{'/open' * is_open}": applied(tokenizer, case, is_open)
        for name, case in CONVERSATIONS.items()
        for is_open in (False, True)
    }


def main(out: str = "", specials: str = "") -> None:
    chat_template_utils.datetime = FixedDate
    found: dict[str, Any] = {}
    if out:
        spec = find_spec("trl")
        assert spec is not None and spec.origin is not None
        for path in sorted(Path(spec.origin).parent.glob("chat_templates/*.jinja")):
            source = path.read_text(encoding="utf-8")
            found[path.stem] = {"source": source, "cases": cases(source, tuple(json.loads(specials)))}
        Path(out).write_text(json.dumps(found))
        return
    for path in sorted((FOLDER / "templates").glob("*.jinja")):
        made = cases(path.read_text(encoding="utf-8"), SPECIALS)
        for case in made.values():
            if "error" not in case:
                case["text"] = hashlib.sha256(case["text"].encode()).hexdigest()[:16]
                case.pop("ids")
        found[path.stem] = made
    lines = [f"{json.dumps(name)}: {json.dumps(made, ensure_ascii=False)}" for name, made in found.items()]
    (FOLDER / "templates.json").write_text("{" + ",\n".join(lines) + "}\n", encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
