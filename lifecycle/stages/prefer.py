"""Stage `prefer`: DPO or ORPO on pairs. Reference log-probabilities are computed once and cached by hash."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from jax.sharding import Mesh

from lifecycle.core.artifact import content_hash
from lifecycle.core.config import digest
from lifecycle.core.distributed import is_writer
from lifecycle.core.progress import Progress
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import Params
from lifecycle.parallel.mesh import build_mesh
from lifecycle.stages.chain import Inputs, Outcome
from lifecycle.stages.config import RunConfig
from lifecycle.stages.training import list_dropped, run_training, start_params
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.rows import RowEncoder, load_rows
from lifecycle.text.tokenizer import load_tokenizer
from lifecycle.training.heldout import ReferenceRows, heldout_means, reference_logprobs
from lifecycle.training.loop import Evaluation, Job
from lifecycle.training.objectives.preference import dpo, orpo
from lifecycle.training.objectives.registry import objective_kind
from lifecycle.training.packing import PairRows, RowSource

OBJECTIVES = {"dpo": dpo, "orpo": orpo}


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    train, model, mesh = config.prefer, config.model, build_mesh(config.mesh)
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    encoder = RowEncoder(ChatTemplate.load(inputs["tokenizer"].path, tokenizer))
    start = start_params(config, "prefer", inputs, mesh)
    reports: list[dict[str, Any]] = []
    rows: dict[str, RowSource] = {}
    for split in ("train", "heldout"):
        path = inputs["rows"].path / f"preference-{split}.jsonl"
        pairs, report = load_rows(path, encoder.encode_preference, train.seq_len // 2)  # so that both answers fit a row
        reports.append(report.plain())
        packed = PairRows(pairs, train.seq_len, config.seed)
        if not objective_kind(train.objective).needs_reference:
            rows[split] = packed
            continue
        started = content_hash(Path(train.start)) if train.start is not None else inputs["sft"].content_hash
        name = digest([started, packed.fingerprint])
        progress.note(f"reference log-probabilities of {len(pairs)} pairs")
        table = _reference(out / f"reference-{name[:16]}.npy", model, start, packed, train.global_batch_size, mesh)
        rows[split] = ReferenceRows(packed, table)
    list_dropped(out, reports)
    objective = partial(OBJECTIVES[train.objective], model, train)
    heldout = heldout_means(model, objective, rows["heldout"], train.global_batch_size, mesh)
    job = Job(
        model=model,
        train=train,
        mesh=mesh,
        objective=objective,
        rows=rows["train"],
        start=start,
        out=out,
        evaluation=Evaluation(train.eval_every, heldout),
    )
    return run_training(job, progress, {"pairs": reports[0]["kept"], "dropped": reports[0]["dropped"]})


def _reference(
    path: Path, model: ModelConfig, params: Params, rows: PairRows, batch_size: int, mesh: Mesh
) -> np.ndarray:
    """The table at `path`, made if it is not there: a resumed run reads what the killed one computed."""
    if path.is_file():
        return np.load(path, allow_pickle=False)
    table = reference_logprobs(model, params, rows, batch_size, mesh)
    if is_writer():
        temporary = path.with_suffix(".tmp.npy")
        np.save(temporary, table)
        temporary.replace(path)
    return table
