"""Bits per byte at equal core-seconds: our pre-training and nanochat's, on the same text, in one go.

    uv run python benchmarks/nanochat.py CODE PYTHON OUT [--core-minutes 10] [--text FOLDER] [--peer "FLAG ..."]
        [key=value ...]

`CODE` is a checkout of github.com/karpathy/nanochat, `PYTHON` an interpreter with torch, rustbpe, tiktoken, pyarrow,
wandb, pyyaml, jinja2, filelock and requests; neither is part of this project. Both sides make a short run that gives
the cost of a step, then train for as many steps as the budget pays: `key=value` changes our run
(`benchmarks/nanochat.yaml`), `--peer` the flags of nanochat's `scripts.base_train`, whose other settings are its
defaults. The standard library has 2.7 M tokens, which 40 core-minutes read six times: `--text` adds the reST and text
files below a folder, for example of Debian's documentation:

    apt-get download linux-doc-6.12 python3.13-doc
    for package in *.deb; do dpkg-deb -x $package FOLDER; done; find FOLDER -name "*.gz" -exec gunzip -f {} +

Counted are the CPU seconds of the training process between the first steps and the last: without tokenizing,
compilation, evaluation and checkpoints. What stays different is said here:

- Each side has its own tokenizer, trained on the same text with as many ids.
- nanochat's loader drops the rest of a document that does not fit in a row. Its training text is cut at line ends into
  passages of three characters a position, so that it sees nearly all.
- Held-out documents are scored whole, in windows of each side's context. We also pay for a document's end.
"""

import argparse
import json
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from lifecycle.core.run import open_run

HERE = Path(__file__).parent
CONFIG = HERE / "nanochat.yaml"
STAGE = "pretrain"
PROBE_STEPS = 40
# Those of its `runs/runcpu.sh` (depth 6, 16,384 tokens a step) would get about 20 steps in ten core-minutes, fewer than
# its warm-up has.
PEER_FLAGS = (
    "--depth=2 --head-dim=64 --window-pattern=L --max-seq-len=256 --device-batch-size=16 --total-batch-size=4096"
)
FIRST_RECORDS = 1  # of our log; the first steps warm the caches up


@dataclass(frozen=True)
class Trained:
    """One side's training, per step, and its score if it was measured."""

    steps: int
    tokens_per_step: int
    cpu_s: float
    wall_s: float
    bits_per_byte: float | None = None

    def line(self, name: str) -> str:
        """What it cost and gave."""
        score = "" if self.bits_per_byte is None else f", {self.bits_per_byte:.4f} bits per byte"
        tokens = self.tokens_per_step
        return (
            f"{name:<9} {self.steps:5} steps of {tokens:,} tokens, {self.steps * self.cpu_s:6.0f} core-s, "
            f"{tokens / self.cpu_s:7,.0f} tokens/core-s, {tokens / self.wall_s:7,.0f} tokens/s{score}"
        )


@dataclass(frozen=True)
class Ours:
    """Our side: runs of the command line in `root`."""

    root: Path
    changes: tuple[str, ...]

    def train(self, steps: int, until: str) -> Trained:
        """Trains for `steps` steps, and evaluates them if `until` is that stage."""
        settings = (f"root={self.root}", f"train.{STAGE}.steps={steps}", *self.changes)
        program = Path(sys.executable).with_name("lifecycle")
        subprocess.run([program, "run", CONFIG, *settings, "--until", until], check=True, stdout=sys.stderr)
        run = open_run(self.root / "nanochat")
        records = [record for record in run.log(STAGE) if "cpu_s" in record]
        tokens = run[STAGE].stats["tokens"] // steps
        cpu_s, wall_s = _per_step(records, tokens)
        score = _bits_per_byte(run[until].path / "text.jsonl") if until != STAGE else None
        return Trained(steps, tokens, cpu_s, wall_s, score)

    @property
    def documents(self) -> Path:
        """The folder of the documents, made by the first run."""
        return open_run(self.root / "nanochat")["documents"].path


def _per_step(records: list[dict[str, Any]], tokens: int) -> tuple[float, float]:
    """CPU and wall seconds of a step, of so many tokens, after the first records."""
    first, rest = records[FIRST_RECORDS - 1], records[FIRST_RECORDS:]
    counted = rest[-1]["step"] - first["step"]
    before, wall_s = first["step"], 0.0
    for record in rest:
        wall_s += (record["step"] - before) * tokens / record["tokens_per_s"]
        before = record["step"]
    return sum(record["cpu_s"] for record in rest) / counted, wall_s / counted


def _bits_per_byte(results: Path) -> float:
    """Over all documents together."""
    rows = [json.loads(line) for line in results.read_text().splitlines()]
    return sum(row["score"] * row["weight"] for row in rows) / sum(row["weight"] for row in rows)


@dataclass(frozen=True)
class Peer:
    """nanochat: its scripts run by its own Python in its own checkout."""

    code: Path
    python: Path
    base: Path
    flags: tuple[str, ...]

    def prepare(self, documents: Path, vocab_size: int) -> None:
        """Writes the text as its loader wants it, and trains its tokenizer."""
        folder = self.base / "base_data_climbmix"
        folder.mkdir(parents=True, exist_ok=True)
        length = next((int(flag.partition("=")[2]) for flag in self.flags if flag.startswith("--max-seq-len=")), 2048)
        train = [passage for text in _texts(documents, "kept") for passage in _passages(text, 3 * length)]
        order = np.random.default_rng(0).permutation(len(train))
        # the last file is its held-out split
        _write(folder / "shard_00000.parquet", [train[i] for i in order])
        _write(self._heldout, _texts(documents, "heldout"))
        command = [self.python, "-m", "scripts.tok_train", f"--vocab-size={vocab_size}"]
        environment = {"NANOCHAT_BASE_DIR": str(self.base), "PATH": "/usr/bin:/bin"}
        subprocess.run(command, cwd=self.code, env=environment, check=True, stdout=sys.stderr)

    @property
    def _heldout(self) -> Path:
        return self.base / "base_data_climbmix" / "shard_00001.parquet"

    def train(self, steps: int, is_scored: bool) -> Trained:
        """Trains for `steps` steps by its own script."""
        trained = self._call("train", steps)
        score = self._call("score", steps)["bits_per_byte"] if is_scored else None
        return Trained(steps, trained["tokens_per_step"], trained["cpu_s_per_step"], trained["wall_s_per_step"], score)

    def _call(self, part: str, steps: int) -> dict[str, Any]:
        settings = {"code": str(self.code), "base": str(self.base), "flags": self.flags, "steps": steps}
        file = self.base / "settings.json"
        file.write_text(json.dumps(settings | {"tag": f"steps{steps}", "heldout": str(self._heldout)}))
        command = [self.python, HERE / "nanochat_peer.py", part, file]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        return json.loads(next(line for line in reversed(done.stdout.splitlines()) if line.startswith("{")))


def _texts(documents: Path, split: str) -> list[str]:
    tables = [pq.read_table(path, columns=["text"]) for path in sorted(documents.glob(f"{split}-*.parquet"))]
    return pa.concat_tables(tables)["text"].to_pylist()


def _passages(text: str, size: int) -> list[str]:
    """The text cut at line ends into parts of at most `size` characters; a longer line is a part, or several."""
    parts = [""]
    for line in text.splitlines(keepends=True):
        for piece in (line[start : start + size] for start in range(0, len(line), size)):
            parts[-1:] = [parts[-1] + piece] if len(parts[-1]) + len(piece) <= size else [parts[-1], piece]
    return [part for part in parts if part]


def _write(path: Path, texts: list[str]) -> None:
    pq.write_table(pa.table({"text": texts}), path, row_group_size=1024)


def _with_text(folder: Path) -> str:
    """The setting of our run that adds a folder's text to the config's."""
    more = {"name": "more", "path": str(folder), "include": ["**/*.rst", "**/*.txt"]}
    return f"data.sources={json.dumps([*yaml.safe_load(CONFIG.read_text())['data']['sources'], more])}"


def main() -> None:
    """Runs both sides and prints their costs, scores and ratios."""
    parser = argparse.ArgumentParser()
    for name in ("code", "python", "out"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--core-minutes", type=float, default=10)
    parser.add_argument("--vocab-size", type=int, default=4096)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--peer", default=PEER_FLAGS)
    parser.add_argument("changes", nargs="*")
    given = parser.parse_intermixed_args()
    sizes = tuple(f"{part}.vocab_size={given.vocab_size}" for part in ("model", "tokenizer"))
    text = [] if given.text is None else [_with_text(given.text.absolute())]
    ours = Ours(given.out.absolute() / "ours", (*sizes, *text, *given.changes))
    base = given.out.absolute() / "peer"
    peer = Peer(given.code.absolute(), given.python.absolute(), base, tuple(shlex.split(given.peer)))
    mine = ours.train(PROBE_STEPS, STAGE)
    peer.prepare(ours.documents, given.vocab_size)
    theirs = peer.train(PROBE_STEPS, is_scored=False)
    print(mine.line("ours"), theirs.line("nanochat"), sep="\n", flush=True)
    budget = given.core_minutes * 60
    theirs = peer.train(max(PROBE_STEPS, round(budget / theirs.cpu_s)), is_scored=True)
    print(theirs.line("nanochat"), flush=True)
    mine = ours.train(max(PROBE_STEPS, 10 * round(budget / mine.cpu_s / 10)), f"evaluate-{STAGE}")
    print(mine.line("ours"))
    assert mine.bits_per_byte is not None and theirs.bits_per_byte is not None
    rates = [side.tokens_per_step / side.cpu_s for side in (mine, theirs)]
    print(f"bits per byte {mine.bits_per_byte / theirs.bits_per_byte:.3f}, tokens/core-s {rates[0] / rates[1]:.2f}")


if __name__ == "__main__":
    main()
