"""`lifecycle chat`: a conversation in the terminal, streamed."""

from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from lifecycle.cli.arguments import ConfigOrBundle, name_first, read_config
from lifecycle.cli.make import start_jax
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.defaults import sampling_of_run
from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.runner import ContextLengthError
from lifecycle.inference.sampling import SamplingParams
from lifecycle.ops.registry import Registry, verify
from lifecycle.stages.chain import finished_stage
from lifecycle.stages.config import PRODUCTION, RunConfig
from lifecycle.stages.weights import trained_params_in_use
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer

QUIT = ("/quit", "/exit")

type StageOrVersion = Annotated[
    str,
    Parameter(
        help="A training stage, or a version: alias, hash or its beginning (production if none is given); then "
        "settings, as key=value."
    ),
]


def chat(config_or_bundle: ConfigOrBundle, /, *words: StageOrVersion) -> None:
    """Talks to a training stage's weights, to a version, or to a bundle outside any registry.

    Reads questions until /quit or the end of input. /new starts another conversation.
    """
    if config_or_bundle.is_dir():
        model = load_bundle(config_or_bundle)
        _talk(model, f"{config_or_bundle} is version {model.version[:12]}")
        return
    name, overrides = name_first(words)
    config = read_config(config_or_bundle, overrides)
    start_jax(config.folder)
    if name in config.train:
        _talk(_trained(config, name), f"the weights of stage {name}")
        return
    version = Registry(config.registry_path).resolve(name or PRODUCTION)
    verify(version)
    _talk(load_bundle(version.path), f"{name or PRODUCTION} is version {version.short}")


def _trained(config: RunConfig, stage: str) -> Model:
    """The model of a finished training stage, from its checkpoint."""
    folder = finished_stage(config, "tokenizer").path
    tokenizer, model = load_tokenizer(folder), config.model_of(stage)
    params = trained_params_in_use(finished_stage(config, stage), model)
    sampling = sampling_of_run(config.export.sampling, config.origin_of(stage))
    defaults = SamplingParams(**sampling.plain())
    return Model(model, params, tokenizer, ChatTemplate.load(folder, tokenizer), defaults)


def _talk(model: Model, introduction: str) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    with Engine(model, num_slots=1) as engine:
        console.print(f"{introduction}. /new begins again, /quit ends.", style="dim")
        messages: list[dict[str, str]] = []
        while (question := _ask(console)) is not None:
            if question == "/new":
                messages = []
            elif question:
                messages = _turn(console, engine, [*messages, {"role": "user", "content": question}])


def _ask(console: Console) -> str | None:
    try:
        question = console.input("you  ").strip()
    except EOFError:
        return None
    return None if question in QUIT else question


def _turn(console: Console, engine: Engine, messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Answers the last message; drops the oldest turns of a conversation that exceeds the context, with a notice."""
    model = engine.model
    prompt = model.template.render(messages, add_generation_prompt=True).ids
    try:
        generation = engine.submit(prompt, model.defaults)
    except ContextLengthError as error:
        if len(messages) == 1:
            console.print(f"too long: {error}", style="red")
            return []
        console.print("(dropped the oldest turn: the conversation exceeds the context)", style="dim")
        return _turn(console, engine, messages[2:])
    console.print("model", end="  ")
    answer = ""
    for event in generation:
        answer += event.text
        console.print(event.text, end="", soft_wrap=True)
    console.print()
    return [*messages, {"role": "assistant", "content": answer}]
