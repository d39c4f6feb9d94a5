"""docs/python.md from beginning to end, in a process of its own, on a finished run."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import REPOSITORY, Debug, environment

SHOW = """
import json
facts = {"stages": list(run), "losses": losses, "score": vars(score), "answer": answer, "logged": run.log("pretrain")}
print("FACTS " + json.dumps(facts))
"""


@pytest.mark.slow
def test_the_blocks_of_the_page_run_one_after_the_other(undisturbed: Debug, tmp_path: Path) -> None:
    page = (REPOSITORY / "docs" / "python.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 5
    assert all(len(block.splitlines()) <= 25 for block in blocks)
    script = tmp_path / "page.py"
    script.write_text("".join(blocks).replace("runs/quickstart", str(undisturbed.folder)) + SHOW, encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, str(script)], env=environment(devices=4), capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    facts = json.loads(ended.stdout.partition("FACTS ")[2])
    assert {"documents", "pretrain", "export", "report"} <= set(facts["stages"])
    assert facts["losses"][-1] < facts["losses"][0]
    assert facts["score"]["nats"] > 0 and facts["score"]["num_tokens"] > 1
    assert facts["logged"][-1]["step"] == 30


def test_importing_the_package_imports_nothing_that_takes_time() -> None:
    """Its version, and what JAX is not to say."""
    code = "import lifecycle, sys; print(*[m for m in sys.modules if m.startswith(('lifecycle.', 'jax', 'numpy'))])"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.split() == ["lifecycle.core", "lifecycle.core.cuda_plugin", "lifecycle.core.version"]
