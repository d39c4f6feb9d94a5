"""Episodes in a run file: rows and template are checked before anything is trained, and a stage trains on them."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lifecycle.cli.doctor import doctor
from lifecycle.core.config import load_config
from lifecycle.core.progress import Silent
from lifecycle.rl.environment import EpisodeError
from lifecycle.stages import keys, rows
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import TEMPLATE_FILE
from lifecycle.text.row_files import RowError

RUN = """
name: run
tokenizer: {kind: bytes}
rows: {prompts: [own.jsonl], chat: [chat.jsonl]}
model:
  {vocab_size: 264, d_model: 16, d_ff: 16, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 16, max_seq_len: 64}
train:
  chat: {objective: sft, steps: 1, seq_len: 64, global_batch_size: 2}
  beat:
    {objective: grpo, episodes: {environment: "beat.py:Beat", max_turns: 2}, steps: 2, max_prompt_tokens: 24,
     max_completion_tokens: 40, seq_len: 64, prompts_per_step: 2, group_size: 2, global_batch_size: 4, log_every: 1,
     eval_every: 2}
"""


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    shutil.copy(Path(__file__).parents[1] / "rl" / "beat.py", tmp_path)
    write(tmp_path, [str(digit) for digit in range(8)])
    chat = [{"prompt": [{"role": "user", "content": str(n)}], "completion": "9"} for n in range(8)]
    (tmp_path / "chat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in chat))
    (tmp_path / "run.yaml").write_text(RUN)
    return tmp_path / "run.yaml"


def write(folder: Path, prompts: list[str]) -> None:
    (folder / "own.jsonl").write_text("".join(json.dumps({"prompt": prompt}) + "\n" for prompt in prompts))


@pytest.fixture
def inputs(tmp_path: Path) -> Any:
    (tmp_path / "tokenizer").mkdir()
    ByteTokenizer().save(tmp_path / "tokenizer")
    return {"tokenizer": SimpleNamespace(path=tmp_path / "tokenizer")}


@pytest.mark.slow
def test_a_stage_trains_on_episodes(run: Path) -> None:
    made = bring_up_to_date(load_config(RunConfig, run), ["beat"], Silent())
    records = [json.loads(line) for line in (made["beat"].path / "metrics.jsonl").read_text().splitlines()]
    logged = {name for record in records for name in record}
    assert {"rewards/Beat/mean", "episodes/turns", "heldout_reward", "completions/clipped_ratio"} <= logged
    assert "assistant: " in (made["beat"].path / "rollouts.jsonl").read_text()


def test_the_doctor_shows_what_the_environment_says_first(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    doctor(run, "beat", rows=1)
    out = capsys.readouterr().out
    assert "⟨<|im_start|>⟩user⏎\n0⟨<|im_end|>⟩⏎\n⟨<|im_start|>⟩assistant⏎" in out


@pytest.mark.parametrize(
    ("prompts", "says"),
    [
        (["1", "2", "x", "3"], r"own\.jsonl:3: train\.beat: .*Beat does not take the row: reset: ValueError.*'x'"),
        ([str(n) * 12 for n in range(1, 9)], "longer than 24 tokens"),
    ],
)
def test_a_row_that_cannot_begin_an_episode_is_told_before_anything_is_trained(
    run: Path, inputs: Any, tmp_path: Path, prompts: list[str], says: str
) -> None:
    write(tmp_path, prompts)
    with pytest.raises(RowError, match=says):
        rows.run(load_config(RunConfig, run), inputs, tmp_path, Silent())


def test_a_template_without_turns_is_told_before_anything_is_trained(run: Path, inputs: Any, tmp_path: Path) -> None:
    source = "{{ bos_token }}{% for m in messages %}{{ m['content'] + '\n' }}{% endfor %}"
    (tmp_path / "tokenizer" / TEMPLATE_FILE).write_text(source)
    with pytest.raises(EpisodeError, match="no token that ends an answer"):
        rows.run(load_config(RunConfig, run), inputs, tmp_path, Silent())


def test_the_keys_have_the_environment(run: Path, tmp_path: Path) -> None:
    def both() -> tuple[Any, Any]:
        config = load_config(RunConfig, run)
        return keys.training(config, "beat"), keys.rows(config)

    before = both()
    code = tmp_path / "beat.py"
    code.write_text(code.read_text() + "\n# another")
    assert all(old != new for old, new in zip(before, both(), strict=True))
