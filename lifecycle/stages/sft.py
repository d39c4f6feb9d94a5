"""Stage `sft`: chat rows, loss on the assistant's tokens only, with a share of pre-training rows against forgetting."""

from pathlib import Path

from lifecycle.core.progress import Progress
from lifecycle.data.shards import TokenShards
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.stages.training import list_dropped, run_training, start_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.rows import RowEncoder, load_rows
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.heldout import heldout_means
from lifecycle.training.loop import Evaluation, Job
from lifecycle.training.mixture import Mixture
from lifecycle.training.objectives.language import language_objective
from lifecycle.training.packing import DocumentRows, ExampleRows, RowSource


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    train, model = config.sft, config.model
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    encoder = RowEncoder(ChatTemplate.load(inputs["tokenizer"].path, tokenizer))
    folder, mesh = inputs["rows"].path, build_mesh(config.mesh)
    examples, report = load_rows(folder / "sft-train.jsonl", encoder.encode_sft, train.seq_len)
    unseen, heldout_report = load_rows(folder / "sft-heldout.jsonl", encoder.encode_sft, train.seq_len)
    list_dropped(out, [report.plain(), heldout_report.plain()])
    heldout = ExampleRows(unseen, train.seq_len, config.seed)
    rows: RowSource = ExampleRows(examples, train.seq_len, config.seed)
    if train.replay_share:
        shards = TokenShards(inputs["tokens"].path, "train", tokenizer)
        replay = DocumentRows(shards, train.seq_len, config.seed + 1)  # another order than pre-training's
        weights = {"chat": 1 - train.replay_share, "replay": train.replay_share}
        rows = Mixture({"chat": rows, "replay": replay}, weights)
    objective = language_objective(model, train)
    job = Job(
        model=model,
        train=train,
        mesh=mesh,
        objective=objective,
        rows=rows,
        start=start_params(config, "sft", inputs, mesh),
        out=out,
        evaluation=Evaluation(
            train.eval_every, heldout_means(model, objective, heldout, train.global_batch_size, mesh)
        ),
    )
    return run_training(job, progress, {"examples": report.kept, "dropped": dict(report.dropped)})
