"""`lifecycle evaluate`: scores a run's training stages on its tasks, or any bundle on the tasks of a file."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import ConfigOrBundle, name_first, read_config
from lifecycle.cli.make import make
from lifecycle.core.config import ConfigError
from lifecycle.core.distributed import errors_are_shared
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, present
from lifecycle.stages.names import EVALUATE

type StageOrTasks = Annotated[
    str, Parameter(help="Of a run: a training stage. Of a bundle: the YAML file of tasks. Then settings, as key=value.")
]


@errors_are_shared()
def evaluate(config_or_bundle: ConfigOrBundle, /, *words: StageOrTasks) -> None:
    """Brings a run's evaluations up to date, or one stage's; for a bundle, prints its scores."""
    name, overrides = name_first(words)
    if config_or_bundle.is_dir():
        _evaluate_bundle(config_or_bundle, name, overrides)
        return
    config = read_config(config_or_bundle, overrides)
    make(config, _targets(config, name), [str(config_or_bundle), *overrides])


def _evaluate_bundle(bundle: Path, tasks: str | None, overrides: tuple[str, ...]) -> None:
    if tasks is None:
        raise ConfigError(f"{bundle} is a bundle; give the file of tasks too: lifecycle evaluate BUNDLE TASKS")
    from lifecycle.cli.evaluate_bundle import evaluate_bundle  # imports JAX

    evaluate_bundle(bundle, Path(tasks), overrides)


def _targets(config: RunConfig, stage: str | None) -> tuple[str, ...]:
    if config.evaluate is None:
        raise ConfigError("this run has no evaluate section; add evaluate.tasks")
    if stage is not None:
        config.require_stage(stage)
        return (EVALUATE + stage,)
    return (*present(build_graph(config), "baseline"), *(EVALUATE + name for name in config.evaluated))
