"""Stage `win-rates`: training stages answer the same held-out prompts, and a judge compares the answers.

Answers and verdicts are written as they are had, so a run that the judge's server stopped asks for what is missing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lifecycle.core.config import ConfigError, digest
from lifecycle.core.distributed import is_writer
from lifecycle.core.files import write_text
from lifecycle.core.progress import Progress
from lifecycle.evals.chat_client import AskError
from lifecycle.evals.config import ROWS, WinRatesConfig
from lifecycle.evals.judging import said
from lifecycle.evals.verifiers.base import Verdict
from lifecycle.evals.win_rates import win_rate
from lifecycle.inference.generate import generate
from lifecycle.inference.model import Model
from lifecycle.inference.sampling import SamplingParams
from lifecycle.parallel.mesh import build_mesh, inference_mesh
from lifecycle.stages.config import RunConfig
from lifecycle.stages.own_rows import HELDOUT
from lifecycle.stages.rows import row_encoder, rows_file
from lifecycle.stages.sessions import session_on
from lifecycle.stages.stage import Inputs, Outcome
from lifecycle.stages.weights import trained_params_in_use
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.messages import text_of
from lifecycle.text.row_encoder import EncodedPrompt, RowEncoder, UnusableRow, apart
from lifecycle.text.row_files import RowData, RowError, read_rows
from lifecycle.text.tokenizer import load_tokenizer

BESIDE = ("tools", "chat_template_kwargs")  # a prompt's columns that its template reads
SHOWN = 3  # comparisons of each pair that the report shows


def run(config: RunConfig, inputs: Inputs, out: Path, progress: Progress) -> Outcome:
    """Answers, comparisons and win rates of the pairs of `evaluate.win_rates`."""
    settings = config.win_rates
    assert settings is not None, "the graph has this stage where there are such settings"
    tokenizer = load_tokenizer(inputs["tokenizer"].path)
    longest = min(config.model_of(name).max_seq_len for name in settings.stages) - settings.max_tokens
    path = rows_file(inputs["rows"].path, settings.rows, HELDOUT)
    questions = held_out_questions(path, settings, row_encoder(config.rows, inputs, tokenizer), longest)
    prompts = [question.asked for question in questions]
    answers = {name: _answers(config, inputs, out, progress, name, prompts) for name in settings.stages}
    answers[ROWS] = [question.answer for question in questions]
    found = [_compared(settings, pair, prompts, answers, out, progress) for pair in settings.pairs if is_writer()]
    return Outcome({"judge": settings.judge.model, "pairs": found}, how=[session_on(config.evaluation_mesh)])


@dataclass(frozen=True)
class Question:
    """A held-out prompt, and the row's own answer; empty if nothing is compared with it."""

    asked: EncodedPrompt
    answer: str


def held_out_questions(path: Path, settings: WinRatesConfig, encoder: RowEncoder, longest: int) -> list[Question]:
    """The rows with the smallest hashes, up to their answers, of at most `longest` tokens; each prompt once. Where the
    rows' own answers are compared, only rows that have one. Raises `ConfigError` for fewer than two."""
    chosen: dict[str, Question] = {}
    for row in sorted((row for _, row in read_rows(path)), key=digest):
        try:
            prompt, answer = _apart(settings.rows, row)
            beside = {name: row[name] for name in BESIDE if name in row}
            asked = encoder.encode_prompt({"prompt": prompt, **beside})
        except (UnusableRow, RowError):  # nothing is asked in it
            continue
        text = _text(answer) if settings.has_references else ""
        is_usable = len(asked.ids) <= longest and (text or not settings.has_references)
        if is_usable and len(chosen) < settings.limit:
            chosen.setdefault(digest(asked.ids), Question(asked, text))
    if len(chosen) < 2:
        answered = " and an answer" if settings.has_references else ""
        raise ConfigError(
            f"evaluate.win_rates: {len(chosen)} of the held-out {settings.rows} rows have a prompt of at most {longest}"
            f" tokens{answered}, and two are needed; lower max_tokens, or hold out more with rows.heldout_fraction"
        )
    return list(chosen.values())


def _apart(kind: str, row: RowData) -> tuple[Any, Any]:
    """A row's prompt, and what follows it: of a pair the chosen answer; nothing good of a row that is labelled bad."""
    if kind == "pairs":
        return apart(row)[:2]
    if "messages" not in row:
        return row.get("prompt", ""), row.get("completion", "") if row.get("label", True) else ""
    roles = [message["role"] for message in row["messages"]]
    asked = roles.index("assistant") if "assistant" in roles else 0
    return row["messages"][:asked], row["messages"][asked:]


def _text(answer: Any) -> str:
    """The text of an answer, of messages that of the assistant's first; empty if there is none."""
    if isinstance(answer, str):
        return answer
    return next((text_of(message) for message in answer if message["role"] == "assistant"), "")


def _answers(
    config: RunConfig, inputs: Inputs, out: Path, progress: Progress, name: str, prompts: Sequence[EncodedPrompt]
) -> list[str]:
    """A stage's likeliest answers, from an earlier session if it had them."""
    settings, file, folder = config.win_rates, out / f"answers-{name}.json", inputs["tokenizer"].path
    assert settings is not None
    if file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))
    progress.start(f"answers of {name}", len(prompts))
    mesh, model, tokenizer = build_mesh(config.evaluation_mesh), config.trained_model(name), load_tokenizer(folder)
    params = trained_params_in_use(inputs[name], model, mesh, config.train[name].weights)
    answering = Model(model.target, params, tokenizer, ChatTemplate.load(folder, tokenizer))
    greedy = SamplingParams(temperature=0, max_tokens=settings.max_tokens)
    found = generate(answering, [prompt.ids for prompt in prompts], greedy, mesh=inference_mesh(mesh))
    texts = [answer.text for answer in found]
    if is_writer():
        write_text(file, json.dumps(texts, ensure_ascii=False, indent=0))
    return texts


def _compared(
    settings: WinRatesConfig,
    pair: tuple[str, str],
    prompts: Sequence[EncodedPrompt],
    answers: Mapping[str, Sequence[str]],
    out: Path,
    progress: Progress,
) -> dict[str, Any]:
    """A pair's win rate, and some of its comparisons. Raises `ConfigError` if too many have no verdict."""
    rows = list(zip(prompts, *(answers[name] for name in pair), strict=True))
    verdicts = _verdicts(settings, pair, rows, out, progress)
    if problem := settings.judge.too_many_failed(verdicts, "comparisons"):
        raise ConfigError(f"evaluate.win_rates: {' against '.join(pair)}: {problem}")
    judged = [(row, verdict.score) for row, verdict in zip(rows, verdicts, strict=True) if verdict.score is not None]
    lengths = [(len(own), len(other)) for (_, own, other), _ in judged]
    found = win_rate([score for _, score in judged], lengths)
    shown = [{"prompt": said(asked.prompt), "first": a, "second": b, "score": s} for (asked, a, b), s in judged[:SHOWN]]
    mean_letters = [sum(each) / len(judged) for each in zip(*lengths, strict=True)]
    return {
        "pair": list(pair), **asdict(found), "faults": len(rows) - len(judged), "letters": mean_letters, "shown": shown,
    }  # fmt: skip


def _verdicts(
    settings: WinRatesConfig, pair: tuple[str, str], rows: Sequence[tuple[EncodedPrompt, str, str]], out: Path,
    progress: Progress,
) -> list[Verdict]:  # fmt: skip
    """The judge's, from an earlier session if it had them. Equal answers are a tie that nobody is asked about."""
    file = out / f"{pair[0]}-against-{pair[1]}.jsonl"
    if not file.is_file():
        progress.note(f"{settings.judge.model} compares {len(rows)} answers of {pair[0]} with those of {pair[1]}")
        asked = [({"prompt": said(prompt.prompt)}, own, other) for prompt, own, other in rows if own != other]
        try:
            found = iter(settings.judge.preferences(settings.template, asked))
        except AskError as error:
            raise ConfigError(f"evaluate.win_rates: {error}") from None
        verdicts = [next(found) if own != other else Verdict(0.5) for _, own, other in rows]
        if not settings.judge.too_many_failed(verdicts, "comparisons"):
            write_text(file, "".join(json.dumps(_line(*one)) + "\n" for one in zip(rows, verdicts, strict=True)))
        return verdicts
    lines = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return [Verdict(line["score"], line["fault"]) for line in lines]


def _line(row: tuple[EncodedPrompt, str, str], verdict: Verdict) -> dict[str, Any]:
    prompt, own, other = row
    return {"prompt": said(prompt.prompt), "first": own, "second": other} | asdict(verdict)
