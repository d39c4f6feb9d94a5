"""Settings of episodes: what a model talks with, and for how long."""

from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from lifecycle.core.config import ConfigError, Section
from lifecycle.core.isolation.confine import unavailable
from lifecycle.core.numbers import Float32, Size
from lifecycle.rl.environment import Environment
from lifecycle.rl.loading import UserCode
from lifecycle.rl.tools import ToolEnvironment, python_tool

PYTHON = "python"  # the built-in tool
CODE = r"[^:]+:[A-Za-z_]\w*"  # FILE.py:name, or package.module:name


class EpisodesConfig(Section):
    """An environment of the user's, or tools that the model may call: `python`, which runs its code closed off, and
    functions of the user's."""

    environment: Annotated[
        str | None, Field(pattern=f"^{CODE}$", description="a class: FILE.py:Name or package.module:Name")
    ] = None  # fmt: skip
    tools: Annotated[
        tuple[Annotated[str, Field(pattern=f"^({PYTHON}|{CODE})$")], ...],
        Field(description="python, FILE.py:function, package.module:function"),
    ] = ()
    max_turns: Annotated[Size, Field(description="of the model in an episode")] = 8
    timeout_s: Annotated[float, Field(gt=0, le=86400, description="of each call of an environment's methods")] = 60.0
    weight: Annotated[Float32, Field(description="of the environment's reward in the sum")] = 1.0

    @property
    def log_name(self) -> str:
        """Under which name rewards and faults are logged: the class's, or `tools`."""
        return "tools" if self.environment is None else self.environment.rpartition(":")[2]

    @cached_property
    def codes(self) -> list[UserCode]:
        """The user's class or functions; raises `ConfigError` for what is not there, and runs nothing of it."""
        if self.environment is not None:
            return [UserCode.named(self.environment, "environment")]
        return [UserCode.named(tool, "tool") for tool in self.tools if tool != PYTHON]

    @property
    def fingerprint(self) -> dict[str, Any]:
        """What decides the episodes, JSON-ready: settings, and the content of the user's files."""
        content = [[code.name, code.sha256] for code in self.codes]
        return self.model_dump(mode="json", exclude={"environment", "tools"}) | {
            "code": content, "has_python": PYTHON in self.tools,
        }  # fmt: skip

    def maker(self) -> Callable[[], Environment]:
        """Imports what is named and returns what makes environments; raises `ConfigError` for what is none."""
        if self.environment is not None:
            make, name = self.codes[0].load(), self.environment
            return lambda: _checked(make(), name)
        functions: list[Callable[..., Any]] = [code.load() for code in self.codes]
        if PYTHON in self.tools:
            if problem := unavailable():
                raise ConfigError(f"episodes.tools: {PYTHON}: code cannot be closed off here: {problem}")
            functions.append(python_tool())
        names = [function.__name__ for function in functions]
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise ConfigError(f"episodes.tools: two are called {repeated!r}; give one of them another name")
        try:
            ToolEnvironment(functions)
        except ValueError as error:
            raise ConfigError(f"episodes.tools: {error}") from None
        return lambda: ToolEnvironment(functions)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.environment is None) == (not self.tools):
            raise ValueError("give either an environment (FILE.py:Name) or tools, such as [python]")
        if self.tools and self.weight != 1:
            raise ValueError("weight is that of an environment's reward, and tools give none; leave it out")
        return self


def _checked(made: Any, name: str) -> Environment:
    if not isinstance(made, Environment):
        what = f"{type(made).__name__}, expected an Environment of lifecycle.rl.environment"
        raise ConfigError(f"environment {name}: it makes {what}")
    return made
