"""`lifecycle versions` and `lifecycle usage`: what fits 80 columns, and the same as JSON."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from lifecycle import cli
from lifecycle.cli.main import _fail
from lifecycle.cli.usage import usage
from lifecycle.cli.versions import versions
from lifecycle.ops.cost import DevicePrice
from lifecycle.ops.registry import Registry
from lifecycle.ops.request_log import RequestLog, RequestRecord

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """Overrides for a run in a folder of its own, on a terminal of 80 columns."""
    monkeypatch.setenv("COLUMNS", "80")
    (tmp_path / "debug").mkdir()
    return f"root={tmp_path}", "name=debug"


def test_usage_fits_a_terminal_and_is_json_for_programs(
    run: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log = RequestLog(tmp_path / "debug" / "requests.db", price=DevicePrice(hour=36.0))
    for number in range(1200):
        log.write(
            RequestRecord(
                id=f"r{number}", time=1.7e9, route="chat", version="0123456789ab" * 5, finish_reason="stop",
                status=400 if number % 2 else 200, prompt_tokens=123_456, completion_tokens=12_345, latency_s=0.25,
                device_s=7.5,
            )
        )  # fmt: skip
    log.close()
    usage(DEBUG, *run)
    shown = capsys.readouterr().out
    head, row, *_ = shown.splitlines()
    assert head.split() == ["day", "version", "requests", "4xx", "5xx", "tokens", "in", "out", "device", "s", "cost"]
    assert row.split()[:6] == ["2023-11-14", "01234567", "1,200", "600", "0", "148,147,200"]
    assert row.split()[6:] == ["14,814,000", "9,000.0", "90.00", "USD"]
    assert max(map(len, shown.splitlines())) <= 80 and "latency      p50 250 ms" in shown
    usage(DEBUG, *run, as_json=True)
    told = json.loads(capsys.readouterr().out)
    (day,) = told["days"]
    assert (day["requests"], day["refused"], day["prompt_tokens"], day["cost"]) == (1200, 600, 148_147_200, 90.0)
    assert told["endings"][0] == {"status": 200, "finish_reason": "stop", "requests": 600}
    assert told["latency_s"]["p95"] == 0.25


def test_versions_as_json(
    run: tuple[str, str], tmp_path: Path, make_artifact: Any, make_result: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = make_artifact("export", {"weights": "w"})
    registry = Registry(tmp_path / "debug" / "registry.db")
    version = registry.register(bundle.path, "chat", [make_result("text", [0.5, 1.0])])
    registry.move("production", version.hash, who="test", why="test")
    versions(DEBUG, *run)
    assert "text 0.750" in capsys.readouterr().out
    versions(DEBUG, *run, as_json=True)
    (told,) = json.loads(capsys.readouterr().out)
    assert told["version"] == version.hash and told["aliases"] == ["production"]
    assert told["evaluations"]["text"]["mean"] == 0.75 and told["evaluations"]["text"]["n"] == 2


def test_names_between_colons_are_text(capsys: pytest.CaptureFixture[str]) -> None:
    """Not pictures: a path is what a user types again. No console of the command line replaces them."""
    with pytest.raises(SystemExit):
        _fail(ValueError("web:locked: not read"))
    assert capsys.readouterr().err == "lifecycle: web:locked: not read\n"
    sources = {path.name: path.read_text(encoding="utf-8") for path in Path(cli.__file__).parent.glob("*.py")}
    assert [name for name, source in sources.items() if re.search(r"\b(Console|Terminal)\(", source)] == ["terminal.py"]
