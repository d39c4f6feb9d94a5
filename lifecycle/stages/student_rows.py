"""What stages need that sample from their own weights; the answers that a student gives to its rows' prompts."""

from collections.abc import Sequence

import jax

from lifecycle.core.progress import Progress
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.parallel.placement import rows_of_process
from lifecycle.rl.sampling import Completions, Prompt
from lifecycle.rl.student import LogAnswers, StudentBatches
from lifecycle.stages.learner import Learner
from lifecycle.stages.row_readers import TOO_FEW
from lifecycle.stages.stage import Inputs
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.text.rows import RowsReport
from lifecycle.training.batches import RowBatches
from lifecycle.training.distilling import Answering, DistillationConfig
from lifecycle.training.packing import RowSource
from lifecycle.training.served import served_by


def blank_model(learner: Learner, inputs: Inputs) -> Model:
    """The stage's model without its weights, which each step gives."""
    template = ChatTemplate.load(inputs["tokenizer"].path, learner.tokenizer)
    return Model(learner.model, {}, learner.tokenizer, template, SamplingParams(stop_ids=tuple(template.stop_ids)))


def student_batches(
    learner: Learner,
    inputs: Inputs,
    rows: RowSource,
    examples: Sequence[EncodedRow],
    report: RowsReport,
    progress: Progress,
) -> tuple[StudentBatches, LogAnswers]:
    """Batches of rows, and of the student's answers to the prompts of their examples; what logs these."""
    train, mesh, seed = learner.train, learner.mesh, learner.seeds["chat"]
    assert isinstance(train, DistillationConfig) and train.answering is not None
    prompts = prompts_of(train.answering, examples, report.names, learner.own.max_dropped, progress)
    model, served = blank_model(learner, inputs), served_by(learner.model, train, mesh)
    completions = Completions(model, train.answering, mesh, num_ids=train.shared_ids)
    taken = RowBatches.on_mesh(rows, train.global_batch_size, mesh)
    held = rows_of_process(mesh, train.global_batch_size, jax.process_index())
    batches = StudentBatches(taken, prompts, train, completions, served, seed, held)
    return batches, LogAnswers(batches)


def prompts_of(
    answering: Answering,
    examples: Sequence[EncodedRow],
    names: Sequence[str],
    max_dropped: float,
    progress: Progress,
) -> list[Prompt]:
    """The rows' prompts. Raises `RowError` if too many cannot be answered."""
    report, prompts = RowsReport("prompts that the student answers"), []
    for number, (example, name) in enumerate(zip(examples, names, strict=True)):
        ids = example.prompt_ids
        report.rows += 1
        if (reason := answering.unasked(ids)) is not None:
            report.drop(name, reason, f" ({len(ids)} tokens)")
        else:
            report.keep(name)
            prompts.append(Prompt(number, ids, ""))
    if report.dropped:
        progress.note(f"{report.path}: {report.said}")
    report.require(max_dropped, TOO_FEW)
    return prompts
