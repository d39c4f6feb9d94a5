"""A Ray cluster of two nodes makes the same documents as this machine's own processes."""

import importlib.util
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from test_data_pipeline import essay

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="needs the extra `ray`"),
]
RAY = Path(sys.executable).with_name("ray")
PREPARE = """
import sys
from pathlib import Path
from document_tables import data_config
from lifecycle.core.progress import Silent
from lifecycle.core.step_costs import step_costs
from lifecycle.data.selecting.pipeline import prepare_documents
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.tagging.engine import engine_of
from lifecycle.data.tagging.tagging import tag_documents
from lifecycle.text.byte_tokenizer import ByteTokenizer
folder, engine, address = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
where = {"engine": engine, "ray_address": address, "partition_bytes": 20_000}
config = data_config(str(folder / "texts"), dedup={"lines": 5, "substrings": 10}, **where)
out = folder / engine
for name in ("tagging", "documents", "tokens"):
    (out / name).mkdir(parents=True)
with step_costs() as costs:
    tag_documents(config, out / "partitions", out / "tagging", Silent())
removed = prepare_documents(out / "tagging", config, out / "documents", Silent(), 0)["removed"]
said = [costs.num_bytes, *sorted(costs.cpu_s), min(costs.cpu_s.values()) > 0, removed]
(out / "said").write_text(" ".join(map(str, said)))  # Ray says things of its own
with engine_of(config, 1) as used:
    write_token_shards({"": out / "documents"}, ByteTokenizer(), out / "tokens", Silent(), used, shard_bytes=9_000)
"""


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return taken.getsockname()[1]


# Without tokens: a head takes one that is in the user's home, and who connects does not.
OWN = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "RAY_AUTH_MODE": "disabled"}


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The address of a cluster of two nodes with a core each, in processes that end with the test."""
    address = f"127.0.0.1:{free_port()}"
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)
    nodes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # a socket's path is short
        head = ["--head", f"--port={address.partition(':')[2]}", "--include-dashboard=false", f"--temp-dir={short}"]
        try:
            for how in (head, [f"--address={address}"]):
                command = [str(RAY), "start", *how, "--num-cpus=1", "--block"]
                with (tmp_path / f"node{len(nodes)}.log").open("wb") as log:
                    node = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
                nodes.append(node)
                wait_for_nodes(address, nodes)
            yield address
        finally:
            for node in reversed(nodes):
                with suppress(ProcessLookupError):
                    os.killpg(node.pid, signal.SIGTERM)
                node.wait()


def wait_for_nodes(address: str, nodes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Returns when so many nodes have joined."""
    count = f"""
import ray
ray.init("{address}", log_to_driver=False, logging_level="ERROR")
raise SystemExit(sum(node["Alive"] for node in ray.nodes()) < {len(nodes)})
"""
    for _ in range(60):
        assert all(node.poll() is None for node in nodes), "a node has ended; its log says why"
        if not subprocess.run([sys.executable, "-c", count], stderr=subprocess.DEVNULL, timeout=100).returncode:
            return
        time.sleep(1)
    pytest.fail("the nodes have not found each other in a minute")


def test_a_cluster_makes_the_same_rows(tmp_path: Path, cluster: str) -> None:
    texts = tmp_path / "texts"
    texts.mkdir()
    for number in range(60):  # every fifth one a near-copy
        text = essay(number - 1).replace("The", "This", 1) if number % 5 == 4 else essay(number)
        (texts / f"{number:02d}.txt").write_text(f"{text}This line stands in all of them.\n")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    said: dict[str, str] = {}
    for engine in ("native", "ray"):
        command = [sys.executable, "-c", PREPARE, str(tmp_path), engine, cluster]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
        said[engine] = (tmp_path / engine / "said").read_text()
    assert said["native"] == said["ray"] and "'documents': 0" not in said["native"]
    assert "signature unwanted write True" in said["ray"]  # what steps cost is told from there
    for name in ("tagging", "documents", "tokens"):
        files = {
            engine: {path.name: path.read_bytes() for path in (tmp_path / engine / name).rglob("*") if path.is_file()}
            for engine in ("native", "ray")
        }
        assert len(files["native"]) > 1 and files["native"] == files["ray"]
