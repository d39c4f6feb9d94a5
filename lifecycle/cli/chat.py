"""`lifecycle chat`: a conversation in the terminal, streamed.

What must hold: Ctrl-C ends an answer, never the conversation; what had come of the answer is part of it.
"""

import readline  # noqa: F401  `input` edits lines, keeps a history, and takes a pasted text as a whole
from dataclasses import dataclass, field

from rich.console import Console

from lifecycle.cli.arguments import ConfigOrBundle
from lifecycle.cli.open_model import StageOrVersion, open_model
from lifecycle.cli.sampling import MODELS_OWN, Sampling, System
from lifecycle.cli.terminal import terminal
from lifecycle.inference.engine import Engine
from lifecycle.inference.generation import Generation
from lifecycle.inference.intake import ContextLengthError
from lifecycle.inference.sampling import SamplingParams

QUIT = ("/quit", "/exit")
HELP = r"""/new    begins another conversation
/retry  asks the last question again
/quit   ends, as Ctrl-D does
A line that ends with \ goes on with the next one. Ctrl-C ends an answer, and at the prompt it drops what is typed."""

type Message = dict[str, str]  # role and content


def chat(
    config_or_bundle: ConfigOrBundle,
    /,
    *words: StageOrVersion,
    system: System = None,
    sampling: Sampling = MODELS_OWN,
) -> None:
    """Talks to a training stage's weights, to a version, or to a bundle outside any registry.

    Reads questions until /quit or the end of input; /help lists what else it takes.
    """
    model, introduction = open_model(config_or_bundle, words)
    console = terminal(highlight=False, markup=False)
    with Engine(model, num_slots=1) as engine:
        console.print(f"{introduction}. /help lists what to type.", style="dim")
        first = [] if system is None else [{"role": "system", "content": system}]
        talk = Talk(console, engine, sampling.over(model.defaults), first)
        while (question := _ask(console)) is not None:
            talk.take(question)


def _ask(console: Console) -> str | None:
    """The next question, of one line or several; None at the end."""
    lines: list[str] = []
    while True:
        try:
            line = input("  ...  " if lines else "you  ")
        except EOFError:
            return None
        except KeyboardInterrupt:
            console.print("\n(/quit or Ctrl-D ends)", style="dim")
            lines = []
            continue
        lines.append(line.removesuffix("\\"))
        if not line.endswith("\\"):
            question = "\n".join(lines).strip()
            return None if question in QUIT else question


@dataclass
class Talk:
    """A conversation: what was said, after the system message."""

    console: Console
    engine: Engine
    params: SamplingParams
    system: list[Message]
    turns: list[Message] = field(default_factory=list)
    answers: int = 0  # asked for so far, in all conversations

    def take(self, typed: str) -> None:
        """Does what was typed: a command, or a question."""
        if typed == "/help":
            self.console.print(HELP, style="dim")
        elif typed == "/new":
            self.turns = []
        elif typed == "/retry":
            if self.turns:
                self.turns.pop()
                self._answer()
        elif typed:
            self.turns.append({"role": "user", "content": typed})
            self._answer()

    def _answer(self) -> None:
        """Answers the last message, which stays only with an answer."""
        generation = self._submit()
        if generation is None:
            self.turns.pop()
            return
        self.console.print("model", end="  ")
        self.turns.append({"role": "assistant", "content": self._stream(generation)})

    def _submit(self) -> Generation | None:
        """Drops the oldest turns of what exceeds the context, with a notice; None if the last message alone does."""
        too_long: ContextLengthError | None = None
        template = self.engine.model.template
        for first in range(0, len(self.turns), 2):
            prompt = template.render([*self.system, *self.turns[first:]], add_generation_prompt=True).ids
            try:
                generation = self.engine.submit(prompt, self._next_params())
            except ContextLengthError as error:
                too_long = error
                continue
            if first:
                self.console.print(f"(without the oldest turns, {first // 2}: they exceed the context)", style="dim")
            self.turns, self.answers = self.turns[first:], self.answers + 1
            return generation
        self.console.print(f"too long, and not part of the conversation: {too_long}", style="red")
        return None

    def _next_params(self) -> SamplingParams:
        if self.params.seed is None:
            return self.params
        return self.params.model_copy(update={"seed": (self.params.seed + self.answers) % 2**64})

    def _stream(self, generation: Generation) -> str:
        """The answer, shown as it arrives; Ctrl-C ends it, and what is there stays."""
        answer = ""
        try:
            for event in generation:
                answer += event.text
                self.console.print(event.text, end="", soft_wrap=True)
            self.console.print()
        except KeyboardInterrupt:
            generation.cancel()
            self.console.print("\n(stopped)", style="dim")
        return answer
