"""`lifecycle evaluate BUNDLE TASKS`: prints any bundle's scores on the tasks of a file."""

from pathlib import Path

from rich.table import Table

from lifecycle.cli.display import progress_on
from lifecycle.cli.make import start_jax
from lifecycle.cli.terminal import terminal
from lifecycle.core.config import load_config
from lifecycle.evals.bundle import BundleTasksConfig, score_bundle
from lifecycle.evals.results import EvalResult, read_results


def evaluate_bundle(bundle: Path, tasks: Path, overrides: tuple[str, ...]) -> None:
    """Evaluates a bundle and prints the scores; existing scores are not computed again."""
    config = load_config(BundleTasksConfig, tasks, overrides)
    start_jax(config.root)
    console = terminal()
    with progress_on(console) as progress:
        artifact = score_bundle(config, bundle, progress)
    console.print(results_table(config, read_results(artifact.path)))
    console.print(f"results {artifact.path}", markup=False, highlight=False, soft_wrap=True)


def results_table(config: BundleTasksConfig, results: list[EvalResult]) -> Table:
    """A row per task: its score, how its rows were chosen, and how many of them were skipped or are doubtful."""
    table = Table(box=None, header_style="bold")
    for column in ("task", "metric", "score", "95 % interval", "rows", "also"):
        table.add_column(column, no_wrap=column != "also")
    for task, result in zip(config.tasks, results, strict=True):
        also = [f"{name} {value:.4g}" for name, value in result.other.items() if name != result.metric]
        counts = {"skipped": result.skipped, "doubtful": result.doubtful}
        also += [f"{what} {len(rows)}" for what, rows in counts.items() if rows]
        also += [text for limit, text in ((task.limit, "rows by hash"), (task.head, "first rows")) if limit is not None]
        interval = f"[{result.low:.4f}, {result.high:.4f}]"
        table.add_row(result.task, result.metric, f"{result.mean:.4f}", interval, str(result.n), "  ".join(also))
    return table
