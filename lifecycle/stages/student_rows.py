"""What stages need that sample from their own weights; the answers that a student gives to its rows' prompts."""

from collections.abc import Sequence

import jax

from lifecycle.core.config import ConfigError
from lifecycle.core.progress import Progress
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.rl.sampling import Completions, Prompt
from lifecycle.rl.student import LogAnswers, StudentBatches, answered_prompt
from lifecycle.stages.learner import Learner
from lifecycle.stages.stage import Inputs
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.row_encoder import EncodedRow
from lifecycle.text.rows import RowsReport
from lifecycle.training.batches import RowBatches
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DistillationConfig
from lifecycle.training.packing import RowSource
from lifecycle.training.served import served_by


def require_one_process(train: TrainConfig) -> None:
    """Raises `ConfigError` in a job of several processes."""
    if jax.process_count() > 1:
        raise ConfigError(f"objective {train.objective} samples in one process, and this job has several")


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
    require_one_process(train)
    prompts = _prompts(train, examples, report, learner.own.max_dropped, progress)
    model, served = blank_model(learner, inputs), served_by(learner.model, train, mesh)
    completions = Completions(model, train.answering, mesh, num_ids=train.shared_ids)
    taken = RowBatches.on_mesh(rows, train.global_batch_size, mesh)
    batches = StudentBatches(taken, prompts, train, completions, served, seed)
    return batches, LogAnswers(batches)


def _prompts(
    train: DistillationConfig, examples: Sequence[EncodedRow], rows: RowsReport, max_dropped: float, progress: Progress
) -> list[Prompt]:
    """The rows' prompts. Raises `RowError` if too many cannot be answered."""
    assert train.answering is not None
    report, prompts, most = RowsReport("prompts to answer"), [], train.answering.max_prompt_tokens
    for number, example in enumerate(examples):
        prompt, name = answered_prompt(number, example), rows.name(number)
        report.rows += 1
        if prompt is None:
            report.drop(name, "nothing before what is learned")
        elif len(prompt.ids) > most:
            report.drop(name, f"prompt longer than on_policy.max_prompt_tokens={most}", f" ({len(prompt.ids)} tokens)")
        else:
            report.keep(name)
            prompts.append(prompt)
    if report.dropped:
        progress.note(report.said)
    report.require(max_dropped, "raise rows.max_dropped, or on_policy.max_prompt_tokens")
    return prompts
