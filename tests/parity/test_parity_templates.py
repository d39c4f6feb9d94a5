"""Published chat templates, those of the TRL in the environment that LIFECYCLE_PARITY_PYTHON names, give transformers'
tokens and masks over whole conversations."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from lifecycle.text.chat import ChatTemplate, Rendered
from lifecycle.text.hf_tokenizer import HFTokenizer
from tests.template_cases import MENDED, REFUSED, learned, loses, rendered, tokenizer_of

PYTHON = os.environ.get("LIFECYCLE_PARITY_PYTHON")
SCRIPT = Path(__file__).parents[1] / "golden/make_template_golden.py"
SHAPE = re.compile(r"<\|[^|<>\s]+\|>|<\|[a-z_]+>|<[a-z_]+\|>|<｜[^｜<>]+｜>|<(?:start|end)_of_\w+>|\[/?[A-Za-z]+\]")  # noqa: RUF001

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(PYTHON is None, reason="LIFECYCLE_PARITY_PYTHON names no Python with transformers and TRL"),
]


def run_there(*arguments: str | Path) -> str:
    done = subprocess.run([str(PYTHON), *map(str, arguments)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[HFTokenizer, dict[str, dict[str, Any]]]:
    """A tokenizer with all the special tokens that the templates name, and what transformers makes of the cases."""
    folder = tmp_path_factory.mktemp("templates")
    place = run_there(
        "-c", "import importlib.util as u; print(u.find_spec('trl').submodule_search_locations[0])"
    ).strip()
    sources = [path.read_text(encoding="utf-8") for path in Path(place).glob("chat_templates/*.jinja")]
    specials = ("<s>", "</s>", "<pad>", *sorted({name for source in sources for name in SHAPE.findall(source)}))
    run_there(SCRIPT, folder / "out.json", json.dumps(specials))
    return tokenizer_of(folder, specials), json.loads((folder / "out.json").read_text())


def test_tokens_and_marked_masks_are_transformers(published: tuple[HFTokenizer, dict[str, dict[str, Any]]]) -> None:
    tokenizer, templates = published
    compared = marked = 0
    for name, entry in templates.items():
        template = ChatTemplate(tokenizer, entry["source"])
        for case, expected in entry["cases"].items():
            found = rendered(template, case)
            if "error" in expected or case.partition("/")[0] in MENDED:
                continue
            if isinstance(found, str):
                assert re.search(REFUSED, found), (name, case, found)
            elif not loses(case, expected["text"]):
                assert found.ids == expected["ids"], (name, case)
                assert not template.has_marks or learned(template, found) == expected["said"], (name, case)
                compared, marked = compared + 1, marked + template.has_marks
    assert compared > 2000 and marked > 1000


def test_masks_without_marks_are_those_of_the_marked_twin_but_for_the_prompt(
    published: tuple[HFTokenizer, dict[str, dict[str, Any]]],
) -> None:
    """TRL's training templates mark the prompt's own text too (`<|start|>assistant`, `<think>`), and empty answers."""
    tokenizer, templates = published
    compared = 0
    for name, entry in templates.items():
        twin = templates.get(f"{name}_training")
        if twin is None or name == "diffusion_gemma":  # which ends a call by <|tool_response>, and marks it nowhere
            continue
        template = ChatTemplate(tokenizer, entry["source"])
        for case, expected in twin["cases"].items():
            found = rendered(template, case)
            is_same = isinstance(found, Rendered) and found.ids == expected.get("ids")
            if not is_same or case.startswith(("empty_answer", "untold_tools")) or not expected["said"]:
                continue
            assert isinstance(found, Rendered)
            ours = learned(template, found)
            assert len(ours) == len(expected["said"]), (name, case)
            assert all(marked.endswith(own) for marked, own in zip(expected["said"], ours, strict=True)), (name, case)
            compared += 1
    assert compared > 600
