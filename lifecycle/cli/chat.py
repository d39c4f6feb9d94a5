"""`lifecycle chat`: a conversation in the terminal, streamed as it is made."""

from pathlib import Path

from rich.console import Console

from lifecycle.cli.make import start_jax
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.engine import Engine
from lifecycle.inference.model import Model
from lifecycle.inference.runner import ContextLengthError
from lifecycle.ops.registry import verify
from lifecycle.stages.config import RunConfig
from lifecycle.stages.register import open_registry

QUIT = ("/quit", "/exit")


def chat(config: RunConfig, name: str) -> None:
    """Reads questions until /quit or the end of input. /new begins another conversation."""
    start_jax(config.folder)
    version = open_registry(config).resolve(name)
    verify(version)
    _talk(load_bundle(version.path), f"{name} is version {version.short}")


def chat_with_bundle(folder: Path) -> None:
    """The same with a bundle that is in no registry: one that was imported or that another tool made."""
    model = load_bundle(folder)
    _talk(model, f"{folder} is version {model.version[:12]}")


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
    """Answers the last message; a conversation that no longer fits loses its oldest turns, and says so."""
    model = engine.model
    prompt = model.template.render(messages, add_generation_prompt=True).ids
    try:
        generation = engine.submit(prompt, model.defaults)
    except ContextLengthError as error:
        if len(messages) == 1:
            console.print(f"too long: {error}", style="red")
            return []
        console.print("(the oldest turn no longer fits and is left out)", style="dim")
        return _turn(console, engine, messages[2:])
    console.print("model", end="  ")
    answer = ""
    for event in generation:
        answer += event.text
        console.print(event.text, end="", soft_wrap=True)
    console.print()
    return [*messages, {"role": "assistant", "content": answer}]
