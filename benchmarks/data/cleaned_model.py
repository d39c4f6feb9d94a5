"""Two models of 10 M parameters on as many tokens: one learns from all documents that were read, one from those kept.

    uv run benchmarks/data/cleaned_model.py DOCUMENTS ... [--steps 1600] [--seeds 0 1] [--also TEXTS.jsonl ...]

DOCUMENTS are the folders of a run's artifacts of stage `documents`. Both models have the same initial weights, as many
batches of one size, and one tokenizer, trained on what was read, so that it does not favour the cleaned text. Measured
are bits per byte of the held-out documents, by source, and of other texts (JSON Lines, column `text`), 200 of each. The
raw side gets nothing that is known to overlap the held-out documents: no copy or near-duplicate of them, and no
document removed for contamination. Batches are small: few tokens must teach much. A seed decides the initial weights
and the order of documents, of both sides; printed are the means of the seeds, and all that is held out for each.
"""

import argparse
import json
import re
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from statistics import mean

import jax
import pyarrow as pa
import pyarrow.compute as pc

from lifecycle.core.progress import Progress, Silent
from lifecycle.data.document_writer import DocumentWriter
from lifecycle.data.documents import Split, read_documents
from lifecycle.data.inspecting.selected import read_parts
from lifecycle.data.shard_writing import write_token_shards
from lifecycle.data.shards import TokenShards
from lifecycle.data.tagging.engine import Native
from lifecycle.evals.texts import score_texts
from lifecycle.inference.model import Model
from lifecycle.model.config import ModelConfig
from lifecycle.parallel.axes import MeshConfig
from lifecycle.parallel.mesh import build_mesh
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import Tokenizer, TokenizerConfig, load_tokenizer, train_tokenizer
from lifecycle.training.batches import RowBatches
from lifecycle.training.hooks.hook import Hook
from lifecycle.training.job import TrainJob
from lifecycle.training.likelihood import NextTokenConfig
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.optimizer_config import OptimizerConfig, ScheduleConfig
from lifecycle.training.run import TrainingRun
from lifecycle.training.token_rows import TokenRows

VOCAB, SEQ_LEN, BATCH = 8192, 512, 2
MODEL = ModelConfig(
    vocab_size=VOCAB, d_model=320, d_ff=960, num_layers=6, num_heads=5, num_kv_heads=5, head_dim=64,
    max_seq_len=SEQ_LEN, tie_embeddings=True,
)  # fmt: skip
COLUMNS = ("id", "source", "path", "text")
MOST_MEASURED = 200  # texts of a set
OVERLAP = re.compile(r"(?:same address as|same text as|with|of its group:) ([^;]+)")
COMPARED = ("address_duplicates", "exact_duplicates", "near_duplicates")


class KeepWeights(Hook):
    """Keeps the weights of the last step."""

    def after_step(self, run: TrainingRun) -> None:
        if run.is_last:
            self.weights = run.measured_weights


class Losses(Silent):
    """Prints the loss now and then."""

    def update(self, done: int, total: int | None = None, **metrics: float) -> None:
        if "loss" in metrics:
            print(f"  step {done}: loss {metrics['loss']:.3f}", flush=True)


def main() -> None:
    """Trains and measures both models."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("documents", type=Path, nargs="+")
    parser.add_argument("--steps", type=int, default=1600)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--also", type=Path, nargs="*", default=[])
    arguments = parser.parse_args()
    sets = heldout_sets(arguments.documents) | {path.stem: texts_of(path) for path in arguments.also}
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        for side in ("raw", "cleaned"):
            write_side(arguments.documents, scratch / side, is_raw=side == "raw")
        raw_texts = (row["text"] for row in read_documents(scratch / "raw", "kept", ["text"]))
        train_tokenizer(TokenizerConfig(vocab_size=VOCAB), raw_texts, scratch / "tokenizer", seed=0)
        tokenizer = load_tokenizer(scratch / "tokenizer")
        for side in ("raw", "cleaned"):
            write_shards(scratch, side, tokenizer)
        raws, cleaneds = (
            [trained(scratch, side, tokenizer, arguments.steps, seed, sets) for seed in arguments.seeds]
            for side in ("raw", "cleaned")
        )
    print(f"\n{'bits per byte of':24} {'raw':>8} {'cleaned':>8} {'cleaned / raw':>14}")
    for name in sets:
        show(name, *(mean(found[name] for found in side) for side in (raws, cleaneds)))
    for seed, raw, cleaned in zip(arguments.seeds, raws, cleaneds, strict=True):
        show(f"held-out, seed {seed}", raw["held-out"], cleaned["held-out"])


def show(name: str, raw: float, cleaned: float) -> None:
    """Prints a line of the table."""
    print(f"{name:24} {raw:8.4f} {cleaned:8.4f} {cleaned / raw:14.4f}")


def heldout_sets(folders: Sequence[Path]) -> dict[str, list[str]]:
    """The first held-out texts, all together and by source."""
    sets: dict[str, list[str]] = {"held-out": []}
    for row in (row for folder in folders for row in read_documents(folder, "heldout", ["source", "text"])):
        sets.setdefault(row["source"], []).append(row["text"])
    sets["held-out"] = [text for texts in sets.values() for text in texts[: MOST_MEASURED // max(1, len(sets) - 1)]]
    return {name: texts[:MOST_MEASURED] for name, texts in sets.items()}


def texts_of(path: Path) -> list[str]:
    """The first texts of a file of rows."""
    lines = [line for line in path.read_text(encoding="utf-8").split("\n") if line]
    return [json.loads(line)["text"] for line in lines[:MOST_MEASURED]]


def write_side(folders: Sequence[Path], out: Path, is_raw: bool) -> None:
    """Writes the documents that one model learns from, as kept ones; nobody is held out."""
    out.mkdir()
    names = ["source", "path"]
    heldout = {
        f"{row['source']}:{row['path']}" for folder in folders for row in read_documents(folder, "heldout", names)
    }
    schema = pa.schema([(name, pa.string()) for name in COLUMNS])
    counts: defaultdict[str, int] = defaultdict(int)
    splits: tuple[Split, ...] = ("kept", "removed") if is_raw else ("kept",)
    with DocumentWriter(out, "kept", schema) as writer, DocumentWriter(out, "heldout", schema):
        columns = [*COLUMNS, "step", "detail"]
        for part in (part for folder in folders for part in read_parts(folder, columns, splits)):
            rows = pa.Table.from_batches([part.rows])
            verdicts = rows.select(["step", "detail"]).to_pylist()
            own = rows.filter(pa.array([not overlaps(verdict, heldout) for verdict in verdicts]))
            own = own.filter(pc.call_function("greater", [pc.call_function("utf8_length", [own["text"]]), 0]))
            writer.write(own.select(COLUMNS).cast(schema))
            counts["documents"] += len(own)
            counts["bytes"] += sum(len(text.encode()) for text in own["text"].to_pylist())
    print(f"{out.name}: {counts['documents']:,} documents, {counts['bytes'] / 1e6:.0f} MB", flush=True)


def overlaps(row: dict[str, str | None], heldout: set[str]) -> bool:
    """Whether a removed document is known to share text with a held-out one."""
    if row["step"] == "decontamination":
        return True
    return row["step"] in COMPARED and any(name in heldout for name in OVERLAP.findall(row["detail"] or ""))


def write_shards(scratch: Path, side: str, tokenizer: Tokenizer) -> None:
    """Writes a side's documents as tokens."""
    progress: Progress = Silent()
    with Native(2) as engine:
        stats = write_token_shards({"": scratch / side}, tokenizer, scratch / f"{side}-tokens", progress, engine)
    print(side, stats["splits"]["train"], flush=True)


def trained(
    scratch: Path, side: str, tokenizer: Tokenizer, steps: int, seed: int, sets: dict[str, list[str]]
) -> dict[str, float]:
    """Trains on a side's tokens; bits per byte of each set."""
    schedule = ScheduleConfig(kind="cosine", warmup_steps=steps // 20)
    optimizer = OptimizerConfig(learning_rate=1e-3, weight_decay=0.1, schedule=schedule)
    train = NextTokenConfig(steps=steps, seq_len=SEQ_LEN, global_batch_size=BATCH, optimizer=optimizer, log_every=80)
    mesh, keep = build_mesh(MeshConfig()), KeepWeights()
    rows = TokenRows(TokenShards(scratch / f"{side}-tokens", "train", tokenizer), SEQ_LEN, {}, seed)
    job = TrainJob(
        MODEL, train, mesh, build_objective(MODEL, train, {}), RowBatches.on_mesh(rows, BATCH, mesh),
        jax.random.key(seed), scratch / f"{side}-model-{seed}",
    )  # fmt: skip
    run_job(job, Losses(), [keep])
    model = Model(MODEL, keep.weights, tokenizer, ChatTemplate.load(scratch / "tokenizer", tokenizer))
    return {name: bits_per_byte(model, texts) for name, texts in sets.items()}


def bits_per_byte(model: Model, texts: Sequence[str]) -> float:
    """Of all texts together."""
    scores = score_texts(model, texts)
    return sum(score.bits_per_byte * score.num_bytes for score in scores) / sum(score.num_bytes for score in scores)


if __name__ == "__main__":
    main()
