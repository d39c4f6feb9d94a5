"""`lifecycle serve` and `lifecycle chat` on the finished chain, asked as a user would ask."""

import json
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import LIFECYCLE, Debug, environment
from openai import OpenAI

from lifecycle.cli.chat import chat
from lifecycle.core.config import ConfigError
from lifecycle.ops.registry import RegistryError
from lifecycle.testing.waiting import LIMIT_S, wait_until
from tests.read_only import mounted, read_only

QUESTION = "What does `json.dumps` do?"
ADDRESS = re.compile(r"serving at (http://\S+)")

pytestmark = pytest.mark.xdist_group("undisturbed")  # the server and the chain's own tests work in the same folder


@pytest.fixture(scope="module")
def server(undisturbed: Debug) -> Iterator[str]:
    """The address of a server on a free port."""
    log = undisturbed.root / "serve.txt"
    with log.open("w") as output:
        process = undisturbed.begin("serve", "serve.port=0", output=output)
    try:
        yield _address(process, log)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0, log.read_text()


def _address(process: subprocess.Popen[str], log: Path) -> str:
    wait_until(lambda: process.poll() is not None or ADDRESS.search(log.read_text()) is not None)
    address = ADDRESS.search(log.read_text())
    assert address, log.read_text()
    return address[1]


def test_the_openai_client_gets_the_same_answer_whole_and_streamed(server: str, undisturbed: Debug) -> None:
    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    assert "production" in {model.id for model in client.models.list()}
    ask: dict[str, Any] = {
        "model": "production",
        "messages": [{"role": "user", "content": QUESTION}],
        "temperature": 0,
        "max_tokens": 24,
    }
    whole = client.chat.completions.create(**ask).choices[0].message.content
    parts = client.chat.completions.create(**ask, stream=True)
    streamed = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    assert whole and streamed == whole


def test_the_served_version_is_the_one_that_trace_shows(server: str, undisturbed: Debug) -> None:
    version = json.loads(undisturbed.succeed("trace", "production", "--json"))["version"]
    assert version[:12] in (undisturbed.root / "serve.txt").read_text()
    assert httpx.get(f"{server}/health", timeout=LIMIT_S).raise_for_status().text
    assert httpx.get(f"{server}/metrics", timeout=LIMIT_S).raise_for_status().text.count("\n") > 5


def test_every_request_is_logged_with_the_version_that_answered(server: str, undisturbed: Debug) -> None:
    body = {"model": "production", "prompt": "def ", "temperature": 0, "max_tokens": 4}
    assert httpx.post(f"{server}/v1/completions", json=body, timeout=LIMIT_S).status_code == 200

    def versions() -> set[str]:
        with sqlite3.connect(f"file:{undisturbed.folder / 'requests.db'}?mode=ro", uri=True) as database:
            return {version for (version,) in database.execute("SELECT version FROM requests")}

    wait_until(lambda: bool(versions()))  # written in batches, by a thread of its own
    assert versions() == {undisturbed.artifact("export").content_hash}


def test_a_port_in_use_is_said_so(server: str, undisturbed: Debug) -> None:
    port = server.rsplit(":", 1)[1]
    assert f"port {port} is in use" in undisturbed.fail("serve", f"serve.port={port}")


@pytest.mark.slow
def test_a_bundle_is_served_and_a_server_whose_engine_breaks_exits_with_an_error(undisturbed: Debug) -> None:
    """A supervisor can start it again; a client is told."""
    bundle = undisturbed.artifact("export").path
    broken = (
        "from lifecycle.inference.programs import Programs; from lifecycle.cli.main import main\n"
        "def decode(self, rows):\n"
        "    raise OSError('lost device')\n"
        "Programs.decode = decode; main()"
    )
    log = undisturbed.root / "broken.txt"
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-c", broken, "serve", str(bundle), "serve.port=0"],
            env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    try:
        address = _address(process, log)
        ask = {"model": bundle.name, "prompt": "a", "max_tokens": 5}
        answer = httpx.post(f"{address}/v1/completions", json=ask, timeout=LIMIT_S)
        assert answer.status_code == 500 and "the engine has stopped" in answer.json()["error"]["message"]
        assert process.wait(LIMIT_S) == 1
        assert "lost device" in log.read_text() and "the engine failed" in log.read_text()
    finally:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_chat_answers_what_comes_in(undisturbed: Debug) -> None:
    ended = subprocess.run(
        undisturbed.command("chat", "--system", "Answer.", "--temperature", "0"),
        env=environment(), input=f"{QUESTION}\n/quit\n", capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "production is version" in ended.stdout and "model" in ended.stdout


@pytest.mark.long
def test_a_file_of_prompts_is_answered_by_a_stage_and_by_a_version(undisturbed: Debug) -> None:
    """And a prompt of the command line by a bundle, with the same words."""
    rows, out = undisturbed.root / "questions.jsonl", undisturbed.root / "answers.jsonl"
    rows.write_text(json.dumps({"prompt": QUESTION}) + "\n")
    options = ("--temperature", "0", "--max-tokens", "12", "--slots", "2")
    ended = subprocess.run(
        undisturbed.command("generate", "--prompts", str(rows), "--out", str(out), *options),
        env=environment(), capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "rows answered: 1" in ended.stderr
    answer = json.loads(out.read_text())["generated"]
    assert answer["tokens"] > 0 and answer["text"]
    printed = subprocess.run(
        [LIFECYCLE, "generate", undisturbed.artifact("export").path, "--prompt", QUESTION, *options],
        env=environment(), capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert printed.returncode == 0 and printed.stdout == answer["text"] + "\n", printed.stderr


def test_a_bundle_has_no_settings(undisturbed: Debug) -> None:
    with pytest.raises(ConfigError, match=r"'temperature=5.0': .* is a bundle"):
        chat(undisturbed.artifact("export").path, "temperature=5.0")
    with pytest.raises(ConfigError, match=r"model.gguf holds weights, not a run; .* lifecycle import"):
        chat(undisturbed.root / "model.gguf")


@pytest.mark.long
def test_a_read_only_run_is_listed_and_served_and_cannot_be_changed(undisturbed: Debug) -> None:
    folder, log = undisturbed.folder, undisturbed.root / "read_only.txt"
    assert "production" in read_only(folder, undisturbed.command("versions"))
    assert "its folder is read-only" in read_only(folder, undisturbed.command("promote", "production"))
    with log.open("w") as output:
        process = subprocess.Popen(
            [*mounted(folder), *undisturbed.command("serve", "serve.port=0")],
            env=environment(), stdout=output, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
    try:
        ask = {"model": "production", "prompt": "def ", "max_tokens": 2}
        assert httpx.post(f"{_address(process, log)}/v1/completions", json=ask, timeout=LIMIT_S).status_code == 200
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(LIMIT_S) == 0
    assert "is read-only: no request log" in log.read_text() and "warn" not in log.read_text().lower()


@pytest.mark.slow
def test_chat_talks_to_a_training_stage(undisturbed: Debug) -> None:
    ended = subprocess.run(
        undisturbed.command("chat", "pretrain"),
        env=environment(), input=f"{QUESTION}\n/quit\n", capture_output=True, text=True, timeout=LIMIT_S,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr
    assert "the weights of stage pretrain" in ended.stdout and "model" in ended.stdout


@pytest.mark.slow
def test_chat_with_an_unknown_version_names_the_known_ones(undisturbed: Debug) -> None:
    with pytest.raises(RegistryError, match=r"no version or alias 'nosuch'.*production"):
        chat(undisturbed.config, "nosuch", f"root={undisturbed.root}", f"name={undisturbed.name}")
