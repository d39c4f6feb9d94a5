"""`lifecycle serve` in two real processes with one mesh over both: one server, with the answers of one process."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from lifecycle.core.stopping import LOST_STATUS
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.generate import embed, generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.models import random_model
from lifecycle.testing.waiting import LIMIT_S, wait_until
from lifecycle.weights.adapters import ADAPTER_WEIGHTS, merged, save_adapter
from lifecycle.weights.published import save_weights
from tests.multidevice.test_two_processes import free_port

pytestmark = pytest.mark.long

MESH = ("serve.mesh.fsdp=2", "serve.mesh.tensor=2", "serve.speculation.method=ngram")
NAME = "tiny"
ADDRESS = re.compile(r"serving at (http://\S+)")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, folder = random_model(num_kv_heads=2, vocab_size=264, max_seq_len=512), tmp_path_factory.mktemp("b") / NAME
    folder.mkdir()
    save_weights(model.config, model.params, folder)
    model.tokenizer.save(folder)
    model.template.save(folder)
    (folder / "generation_config.json").write_text("{}")
    return folder


@contextmanager
def served(bundle: Path, out: Path, *settings: str) -> Generator[tuple[str, list[subprocess.Popen[str]], list[Path]]]:
    """The server's address, its processes and what each of them prints; all end with the block."""
    logs = [out / "0.txt", out / "1.txt"]
    flags = os.environ["XLA_FLAGS"].replace("device_count=8", "device_count=2")
    job = {"LIFECYCLE_COORDINATOR": f"127.0.0.1:{free_port()}", "LIFECYCLE_NUM_PROCESSES": "2", "XLA_FLAGS": flags}
    words = ["serve", str(bundle), "serve.port=0", *MESH, *settings]
    processes: list[subprocess.Popen[str]] = []
    for index, log in enumerate(logs):
        own = {"LIFECYCLE_PROCESS_ID": str(index), "XDG_CACHE_HOME": str(out)}
        command = [sys.executable, "-c", "from lifecycle.cli.main import main; main()", *words]
        with log.open("w") as output:
            processes.append(
                subprocess.Popen(
                    command, env=os.environ | job | own, stdout=output, stderr=subprocess.STDOUT, text=True
                )
            )
    try:
        wait_until(lambda: any(one.poll() is not None for one in processes) or "serving at" in logs[0].read_text())
        found = ADDRESS.search(logs[0].read_text())
        assert found, [log.read_text() for log in logs]
        yield found[1], processes, logs
    finally:
        for process in processes:
            process.kill()
            process.wait()


def asked(number: int) -> dict[str, object]:
    """A request: greedy or with a seed, long or short, with a bias, before others."""
    sampled = {"temperature": 1, "seed": number}
    kinds = [{"temperature": 0}, sampled, {**sampled, "logit_bias": {"65": 2}}, {"temperature": 0, "priority": -1}]
    return {"model": NAME, "prompt": "def f" * (1 + number * 7 % 40), "max_tokens": 6, **kinds[number % 4]}


def test_a_burst_is_answered_as_by_one_process_and_the_server_ends_in_order(bundle: Path, tmp_path: Path) -> None:
    """30 requests at once for 4 slots, a third of whose clients leave."""
    with served(bundle, tmp_path, "serve.num_slots=4", "serve.cache_tokens=1024") as (address, processes, logs):

        def ask(number: int) -> str | None:
            if number % 3 == 2:
                with suppress(httpx.TimeoutException):
                    body = {**asked(number), "max_tokens": 200}
                    httpx.post(f"{address}/v1/completions", json=body, timeout=0.5 + number / 50)
                return None
            answer = httpx.post(f"{address}/v1/completions", json=asked(number), timeout=LIMIT_S)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["text"]

        with ThreadPoolExecutor(30) as pool:
            texts = list(pool.map(ask, range(30)))
        body = {"model": NAME, "input": "def f", "encoding_format": "float"}
        vector = httpx.post(f"{address}/v1/embeddings", json=body, timeout=LIMIT_S).json()["data"][0]["embedding"]
        processes[1].send_signal(signal.SIGTERM)  # a machine that is taken away: process 0 ends the server in order
        assert [process.wait(LIMIT_S) for process in processes] == [0, 0], [log.read_text() for log in logs]
    model = load_bundle(bundle)
    for number in (0, 1, 4, 27):
        assert texts[number] == alone(model, asked(number))
    expected = embed(model, [[model.tokenizer.bos_id, *model.tokenizer.encode("def f")]])[0]
    assert vector == pytest.approx(expected.tolist(), abs=1e-5)


def alone(model: Model, body: dict[str, object]) -> str:
    """What one process answers, without the server."""
    fields = {name: body[name] for name in ("temperature", "seed", "max_tokens", "priority") if name in body}
    tokenizer = model.tokenizer
    prompt = [tokenizer.bos_id, *tokenizer.encode(str(body["prompt"]))]
    return generate(model, [prompt], SamplingParams.model_validate(fields))[0].text


def test_adapters_are_loaded_in_all_processes_while_requests_run(bundle: Path, tmp_path: Path) -> None:
    """One by the settings, another over HTTP; then a damaged one, and the server lives."""
    config, adapters = load_bundle(bundle).config, tmp_path / "adapters"
    for seed, name in enumerate(("first", "second", "third")):
        save_adapter(config, random_adapter(config, seed, 2), adapters / name, NAME)
    settings = [f"adapters.models.first={adapters / 'first'}", f"adapters.folders=[{adapters}]", "adapters.rank=2"]
    with served(bundle, tmp_path, *(f"serve.{setting}" for setting in settings)) as (address, processes, logs):

        def post(path: str, **body: object) -> httpx.Response:
            return httpx.post(f"{address}/v1/{path}", json=body, timeout=LIMIT_S)

        def said(model: str) -> str:
            answer = post("completions", model=model, prompt="def f", max_tokens=12, temperature=0)
            assert answer.status_code == 200, answer.text
            return answer.json()["choices"][0]["text"]

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(said, name) for name in (NAME, "first") * 4]
            loaded = post("load_lora_adapter", lora_name="second", lora_path="second")
            assert loaded.status_code == 200, loaded.text
            running += [pool.submit(said, name) for name in (NAME, "first", "second") * 2]
            texts = {(number < 8, one.result()) for number, one in enumerate(running)}
        assert len({text for _, text in texts}) == 3
        (adapters / "third" / ADAPTER_WEIGHTS).write_bytes(b"\0" * 9)
        refused = post("load_lora_adapter", lora_name="third", lora_path="third")
        assert refused.status_code == 400 and "not a complete safetensors file" in refused.text
        assert len({said(name) for name in (NAME, "first", "second")}) == 3
        processes[0].send_signal(signal.SIGTERM)
        assert [process.wait(LIMIT_S) for process in processes] == [0, 0], [log.read_text() for log in logs]
    model, texts = load_bundle(bundle), {text for _, text in texts}
    adapted = [merged(model.params, random_adapter(config, seed, 2)) for seed in (0, 1)]
    body: dict[str, object] = {"prompt": "def f", "max_tokens": 12, "temperature": 0}
    assert texts == {alone(replace(model, params=params), body) for params in (model.params, *adapted)}


@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_process_ends_the_other_with_an_error(bundle: Path, tmp_path: Path, index: int) -> None:
    """In the middle of an answer, whose client gets an error. Without process 0 JAX's coordination service is gone, and
    its client may be the first to end the other."""
    with served(bundle, tmp_path) as (address, processes, logs):
        body = {"model": NAME, "prompt": "a", "max_tokens": 400, "temperature": 0, "stream": True}
        with httpx.stream("POST", f"{address}/v1/completions", json=body, timeout=LIMIT_S) as answer:
            lines = answer.iter_lines()
            next(lines)
            processes[index].kill()
            if index:
                last = [json.loads(line[6:]) for line in lines if line.startswith("data: {")][-1]
                assert last["error"]["code"] == "engine_error"
        other = processes[1 - index]
        allowed = {LOST_STATUS} if index else {LOST_STATUS, -signal.SIGABRT}
        assert other.wait(LIMIT_S) in allowed, logs[1 - index].read_text()
        assert other.returncode != LOST_STATUS or f"process {index} on " in logs[1 - index].read_text()


def test_settings_that_differ_are_said_once(bundle: Path, tmp_path: Path) -> None:
    with (
        pytest.raises(AssertionError, match=r"num_slots=7 is not a multiple"),
        served(bundle, tmp_path, "serve.num_slots=7"),
    ):
        pass
    assert "Traceback" not in "".join((tmp_path / f"{n}.txt").read_text() for n in (0, 1))
