"""What transformers makes of conversations: `OUT.json TOKENIZER_FOLDER [TEMPLATE.jinja ...]`; without templates, all of
the installed TRL. Per template and case (`NAME` or `NAME/open` with the generation prompt): text, ids, mask, or error.
"""

import json
import sys
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

import jinja2
from conversations import CONVERSATIONS
from transformers import PreTrainedTokenizerFast
from transformers.utils import chat_template_utils


class FixedDate(datetime):
    @classmethod
    def now(cls, tz=None):
        return cls(2024, 7, 26)


def applied(tokenizer, messages, tools, variables, is_open):
    given = {"tools": tools, "add_generation_prompt": is_open, **variables}
    try:
        text = tokenizer.apply_chat_template(messages, tokenize=False, **given)
        row = tokenizer.apply_chat_template(messages, return_assistant_tokens_mask=True, **given)
    except (jinja2.TemplateError, TypeError, AttributeError, ValueError) as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"text": text, "ids": row["input_ids"], "mask": row["assistant_masks"]}


def main(out, folder, *templates):
    chat_template_utils.datetime = FixedDate
    if not templates:
        templates = sorted(Path(find_spec("trl").origin).parent.glob("chat_templates/*.jinja"))
    names = json.loads((Path(folder) / "tokenizer_config.json").read_text())
    found = {}
    for path in map(Path, templates):
        tokenizer = PreTrainedTokenizerFast(tokenizer_file=f"{folder}/tokenizer.json", **names)
        tokenizer.chat_template = path.read_text(encoding="utf-8")
        found[path.stem] = {
            "source": tokenizer.chat_template,
            "cases": {
                f"{name}{'/open' * is_open}": applied(tokenizer, *case, is_open)
                for name, case in CONVERSATIONS.items()
                for is_open in (False, True)
            },
        }
    Path(out).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
