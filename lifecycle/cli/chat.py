"""`lifecycle chat`: a conversation in the terminal, streamed."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from lifecycle.cli.arguments import ConfigOrBundle, name_first, read_config
from lifecycle.cli.make import BUNDLES, start_jax
from lifecycle.core.artifact import require_intact
from lifecycle.core.config import ConfigError, validate
from lifecycle.core.file_hashes import FileHashes
from lifecycle.core.files import user_cache
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.defaults import sampling_of_run
from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.runner import ContextLengthError
from lifecycle.inference.sampling import SamplingParams
from lifecycle.ops.registry import SHOWN_HASH, Registry, verify
from lifecycle.stages.chain import finished_stage
from lifecycle.stages.config import PRODUCTION, RunConfig
from lifecycle.stages.storage import fetch_version, read_registry
from lifecycle.stages.weights import trained_params_in_use
from lifecycle.text.chat import ChatTemplate
from lifecycle.text.tokenizer import load_tokenizer

QUIT = ("/quit", "/exit")

type Message = dict[str, str]  # role and content

type StageOrVersion = Annotated[
    str,
    Parameter(
        help="A training stage, or a version: alias, hash or its beginning (production if none is given); then "
        "settings, as key=value."
    ),
]


type System = Annotated[str | None, Parameter(help="The conversation's system message.")]
type Temperature = Annotated[float | None, Parameter(help="Replaces the model's own; 0 is greedy.")]


def chat(
    config_or_bundle: ConfigOrBundle, /, *words: StageOrVersion, system: System = None, temperature: Temperature = None
) -> None:
    """Talks to a training stage's weights, to a version, or to a bundle outside any registry.

    Reads questions until /quit or the end of input. /new starts another conversation.
    """
    model, introduction = _model(config_or_bundle, words)
    if temperature is not None:
        chosen = model.defaults.plain() | {"temperature": temperature}
        model = replace(model, defaults=validate(SamplingParams, chosen, where=f"--temperature={temperature}"))
    _talk(model, introduction, [] if system is None else [{"role": "system", "content": system}])


def _model(config_or_bundle: Path, words: tuple[str, ...]) -> tuple[Model, str]:
    """The model to talk to, and a line that says which."""
    if config_or_bundle.is_dir():
        if words:
            raise ConfigError(
                f"{words[0]!r}: {config_or_bundle} is a bundle, which has no stages, versions or settings; there are "
                "--system and --temperature"
            )
        start_jax(user_cache() / BUNDLES)
        model = load_bundle(config_or_bundle)
        return model, f"{config_or_bundle} is version {model.version[:SHOWN_HASH]}"
    name, overrides = name_first(words)
    config = read_config(config_or_bundle, overrides)
    start_jax(config.folder)
    if name in config.train:
        return _trained(config, name), f"the weights of stage {name}"
    read_registry(config)
    version = Registry(config.registry_path).resolve(name or PRODUCTION)
    fetch_version(config, version)
    verify(version)
    return load_bundle(version.path), f"{name or PRODUCTION} is version {version.short}"


def _trained(config: RunConfig, stage: str) -> Model:
    """The model of a finished training stage, from its checkpoint."""
    text, trained = finished_stage(config, "tokenizer"), finished_stage(config, stage)
    for artifact in (text, trained):
        require_intact(artifact, FileHashes(config.folder))
    folder, model = text.path, config.model_of(stage)
    tokenizer = load_tokenizer(folder)
    params = trained_params_in_use(trained, model)
    sampling = sampling_of_run(config.export.sampling, config.origin_of(stage))
    defaults = SamplingParams(**sampling.plain())
    return Model(model, params, tokenizer, ChatTemplate.load(folder, tokenizer).live, defaults)


def _talk(model: Model, introduction: str, system: list[Message]) -> None:
    console = Console(highlight=False, markup=False, emoji=False)
    with Engine(model, num_slots=1) as engine:
        console.print(f"{introduction}. /new begins again, /quit ends.", style="dim")
        turns: list[Message] = []
        while (question := _ask(console)) is not None:
            if question == "/new":
                turns = []
            elif question:
                turns = _turn(console, engine, system, [*turns, {"role": "user", "content": question}])


def _ask(console: Console) -> str | None:
    try:
        question = console.input("you  ").strip()
    except EOFError:
        return None
    return None if question in QUIT else question


def _turn(console: Console, engine: Engine, system: list[Message], turns: list[Message]) -> list[Message]:
    """Answers the last message; drops the oldest turns of a conversation that exceeds the context, with a notice."""
    model = engine.model
    prompt = model.template.render([*system, *turns], add_generation_prompt=True).ids
    try:
        generation = engine.submit(prompt, model.defaults)
    except ContextLengthError as error:
        if len(turns) == 1:
            console.print(f"too long: {error}", style="red")
            return []
        console.print("(dropped the oldest turn: the conversation exceeds the context)", style="dim")
        return _turn(console, engine, system, turns[2:])
    console.print("model", end="  ")
    answer = ""
    for event in generation:
        answer += event.text
        console.print(event.text, end="", soft_wrap=True)
    console.print()
    return [*turns, {"role": "assistant", "content": answer}]
