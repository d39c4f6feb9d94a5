"""`lifecycle register`: makes a bundle from outside the run a version of its registry."""

import shlex
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import Bundle, ConfigPath, name_first, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import content_hash, open_artifact, require_intact
from lifecycle.core.config import ConfigError
from lifecycle.evals.results import EvalResult, read_results
from lifecycle.ops.registry import Registry
from lifecycle.stages.storage import changing_registry
from lifecycle.text.chat import read_template

type EvaluationOrOverrides = Annotated[
    str, Parameter(help="The results of `lifecycle evaluate BUNDLE TASKS`, a folder; then settings, as key=value.")
]


def register(config: ConfigPath, bundle: Bundle, /, *words: EvaluationOrOverrides) -> None:
    """Registers a bundle with its evaluations, for `promote`; no alias moves."""
    evaluation, overrides = name_first(words)
    run, console = read_config(config, overrides), terminal(soft_wrap=True)
    results = [] if evaluation is None else _results(Path(evaluation), bundle)
    kind = "base" if read_template(bundle) is None else "chat"
    with progress_on(console) as progress, changing_registry(run, progress):
        version = Registry(run.registry_path).register(bundle, kind, results)
    console.print(f"version {version.short}: {bundle}, with {len(results)} evaluations", markup=False, highlight=False)
    rest = shlex.join([str(config), version.short, *overrides])
    console.print(f"promote uv run lifecycle promote {rest}", markup=False, highlight=False)


def _results(folder: Path, bundle: Path) -> list[EvalResult]:
    """The results in an evaluation's folder; raises `ConfigError` if they are another bundle's."""
    artifact = open_artifact(folder)
    require_intact(artifact)
    if artifact.manifest.config.get("bundle") != content_hash(bundle):
        raise ConfigError(f"{folder}: not an evaluation of {bundle}; make one: lifecycle evaluate {bundle} TASKS")
    return read_results(folder)
