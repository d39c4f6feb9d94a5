"""`lifecycle generate`: answers to prompts on the command line, or to the rows of a file."""

import math
import time
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from lifecycle.cli.arguments import ConfigOrBundle
from lifecycle.cli.display import progress_on
from lifecycle.cli.open_model import StageOrVersion, open_model, with_adapter
from lifecycle.cli.sampling import MODELS_OWN, Sampling, System
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import ConfigError
from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.offline import AHEAD, Answered, Asked, answer_file, conversation
from lifecycle.inference.texts import prompt_ids
from lifecycle.model.config import CacheFormat, WeightFormat
from lifecycle.ops.registry import SHOWN_HASH

SLOTS, MAX_SLOTS = 8, 4096


type Prompt = Annotated[tuple[str, ...], Parameter(help="A question; may be given again.")]
type Rows = Annotated[Path | None, Parameter(help="A JSONL file whose rows have prompt or messages.")]
type Out = Annotated[Path | None, Parameter(help="The file for the rows' answers; one that is not whole goes on.")]
type IsPlain = Annotated[bool, Parameter(name="plain", help="Continue the texts instead of answering them.")]
type Weights = Annotated[WeightFormat | None, Parameter(help="Matrices rounded to it instead of the compute dtype.")]
type KvCache = Annotated[CacheFormat | None, Parameter(help="Keys and values in 8 bits instead of the compute dtype.")]
type AdapterFolder = Annotated[Path | None, Parameter(help="A low-rank adapter's folder, as PEFT saves it.")]
type Slots = Annotated[int, Parameter(help="How many are generated at a time.")]


def generate(
    config_or_bundle: ConfigOrBundle,
    /,
    *words: StageOrVersion,
    prompt: Prompt = (),
    prompts: Rows = None,
    out: Out = None,
    system: System = None,
    plain: IsPlain = False,
    slots: Slots = SLOTS,
    weights: Weights = None,
    kv_cache: KvCache = None,
    adapter: AdapterFolder = None,
    sampling: Sampling = MODELS_OWN,
) -> None:
    """Answers prompts with a training stage's weights, a version, or a bundle outside any registry.

    Those of --prompt are printed; the rows of --prompts are written to --out, one line each, in their order.
    """
    if bool(prompt) == (prompts is not None) or (prompts is None) != (out is None):
        raise ConfigError("give --prompt TEXT, or --prompts FILE.jsonl and --out FILE.jsonl")
    if not 1 <= slots <= MAX_SLOTS:
        raise ConfigError(f"--slots={slots}: from 1 to {MAX_SLOTS:,} prompts are generated at a time")
    if plain and system is not None:
        raise ConfigError("--plain continues texts, and --system is a message of a conversation: give one of them")
    model, introduction = open_model(config_or_bundle, words, weights if adapter is None else None)
    if adapter is not None:
        model = with_adapter(model, adapter, weights)
        introduction += f", with the adapter {adapter} ({model.version[:SHOWN_HASH]})"
    formats = {"weights": weights, "kv_cache": kv_cache}
    named = tuple(f"{name}={form}" for name, form in formats.items() if form is not None)
    asked = Asked(sampling.over(model.defaults), system, plain, named)
    with Engine(model, slots, AHEAD * slots + len(prompt), dispatch_s=math.inf, kv_cache=kv_cache) as engine:
        if prompts is None or out is None:
            _print_answers(engine, model, prompt, asked)
            return
        console = terminal(stderr=True)
        console.print(introduction, style="dim", highlight=False)
        began = time.monotonic()
        with progress_on(console) as progress:
            counts = answer_file(engine, prompts, out, asked, progress)
        _report(console, counts, out, time.monotonic() - began)


def _print_answers(engine: Engine, model: Model, prompts: tuple[str, ...], asked: Asked) -> None:
    console = terminal(highlight=False, markup=False)
    ids = [prompt_ids(model, conversation(prompt, asked)) for prompt in prompts]
    for generation in [engine.submit(own, asked.params_of(number)) for number, own in enumerate(ids)]:
        console.print(generation.wait().text, soft_wrap=True)


def _report(console: Console, counts: Answered, out: Path, took_s: float) -> None:
    kept = f" and before: {counts.kept}" if counts.kept else ""
    rate = f"tokens: {counts.tokens:,}, {counts.tokens / took_s:,.0f} a second"
    console.print(f"{out}: rows answered: {counts.answered}{kept}; {rate}", highlight=False, soft_wrap=True)
    if counts.failed:
        console.print(f"rows with an error instead of an answer: {counts.failed}", style="red", highlight=False)
        for example in counts.examples:
            console.print(f"  {example}", markup=False, highlight=False, soft_wrap=True)
