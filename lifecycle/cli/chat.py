"""`lifecycle chat`: a conversation in the terminal, streamed."""

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from lifecycle.cli.arguments import ConfigOrBundle
from lifecycle.cli.open_model import StageOrVersion, open_model
from lifecycle.core.config import validate
from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.runner import ContextLengthError
from lifecycle.inference.sampling import SamplingParams

QUIT = ("/quit", "/exit")

type Message = dict[str, str]  # role and content

type System = Annotated[str | None, Parameter(help="The conversation's system message.")]
type Temperature = Annotated[float | None, Parameter(help="Replaces the model's own; 0 is greedy.")]


def chat(
    config_or_bundle: ConfigOrBundle, /, *words: StageOrVersion, system: System = None, temperature: Temperature = None
) -> None:
    """Talks to a training stage's weights, to a version, or to a bundle outside any registry.

    Reads questions until /quit or the end of input. /new starts another conversation.
    """
    model, introduction = open_model(config_or_bundle, words)
    if temperature is not None:
        chosen = model.defaults.plain() | {"temperature": temperature}
        model = replace(model, defaults=validate(SamplingParams, chosen, where=f"--temperature={temperature}"))
    _talk(model, introduction, [] if system is None else [{"role": "system", "content": system}])


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
