"""The graph of a run: its stages and their inputs.

tagging -> documents -> tokenizer -> tokens, rows -> training stages -> evaluate-NAME -> export -> register -> report

The training stages are the user's; the others follow from them. A stage is in the graph only if the run needs it: no
token shards unless a stage reads tokens, no rows unless one reads rows, no documents without a data section. Of several
corpora each has a tagging and a documents of its own (`documents-CORPUS`), and all later stages read those of all.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, nearest
from lifecycle.core.fetched import place_here
from lifecycle.core.store import is_url
from lifecycle.data.config import AGAINST, DedupConfig
from lifecycle.data.tagging.code_version import may_be_repaired
from lifecycle.evals.tasks import TaskConfig
from lifecycle.ops.registry import Registry
from lifecycle.stages import keys
from lifecycle.stages.checks import rows_stage
from lifecycle.stages.config import RunConfig
from lifecycle.stages.names import CANDIDATE, DOCUMENTS, EVALUATE, TAGGING, WIN_RATES, of_corpus, with_corpora
from lifecycle.stages.opened import Opened, checkpoint, everything, figures, final_weights, matching, nothing, rows_of
from lifecycle.stages.origins import Start, named_models, needed_stages
from lifecycle.stages.stage import Stage

HELD_OUT, TEXT = matching("heldout-*"), matching("kept-*", "heldout-*")  # of the documents; the removed ones stay

type Graph = dict[str, Stage]  # by name, each after its inputs


def build_graph(config: RunConfig) -> Graph:
    """The stages of a run. Every training stage has an evaluation stage; the report needs only those in `evaluated`."""
    graph: Graph = {}
    for stage in _stages(config):
        assert graph.keys() >= {*stage.needs}, f"{stage.name} comes before one of {stage.needs}"
        graph[stage.name] = stage
    return graph


def needed(graph: Graph, targets: Iterable[str]) -> list[Stage]:
    """The targets and the stages that they need, each after its inputs.

    Raises `ConfigError`, with the nearest name, for a target that is not in the graph, and for a stage that lacks
    something.
    """
    wanted = set(targets)
    for name in wanted:
        if name not in graph:
            raise ConfigError(f"this run has no stage {name!r}{nearest(name, graph)}")
    for stage in reversed(graph.values()):
        if stage.name in wanted:
            wanted.update(stage.needs)
    stages = [stage for stage in graph.values() if stage.name in wanted]
    if lacking := next((stage.lacks for stage in stages if stage.lacks is not None), None):
        raise ConfigError(lacking)
    return stages


def present(graph: Graph, *names: str) -> tuple[str, ...]:
    """The given names that are stages of this graph."""
    return tuple(name for name in names if name in graph)


def _stages(config: RunConfig) -> Iterator[Stage]:
    yield from _data_stages(config)
    yield from (_training_stage(config, name) for name in config.training_stages)
    yield from _evaluations(config)
    yield from _win_rates(config)
    yield from _releases(config)


def _data_stages(config: RunConfig) -> Iterator[Stage]:
    documents = config.documents_stages
    for place, (corpus, data) in enumerate(config.corpora.items()):
        yield from _corpus_stages(corpus, documents[:place], data.dedup)
    opens = dict.fromkeys(documents, TEXT)
    yield Stage("tokenizer", "tokenizer", documents, keys.tokenizer, opens=opens)
    if config.reads("tokens"):
        yield Stage("tokens", "tokens", (*documents, "tokenizer"), keys.tokens, opens=opens)
    if config.uses_rows:
        inputs = (*(documents if config.rows.docstrings else ()), "tokenizer")
        yield Stage("rows", "rows", inputs, keys.rows, opens=opens)


def _corpus_stages(corpus: str, earlier: tuple[str, ...], dedup: DedupConfig) -> Iterator[Stage]:
    """A corpus's stages; `earlier`: the documents of those before it in the run file."""
    tagging, arguments = of_corpus(TAGGING, corpus), {"corpus": corpus}
    key = partial(keys.tagging, corpus=corpus)
    yield Stage(tagging, TAGGING, (), key, arguments=arguments, still_holds=_is_read)
    settings = partial(keys.documents, corpus=corpus)
    name, opens = of_corpus(DOCUMENTS, corpus), dict.fromkeys(earlier, TEXT)
    yield Stage(name, DOCUMENTS, (tagging, *earlier), settings, _earlier(dedup), arguments=arguments, opens=opens)


def _is_read(config: RunConfig, tagged: Artifact) -> bool:
    """Whether no file failed that other code may read. Without failures documents stay as they are, whatever the code:
    training goes on from them."""
    return not may_be_repaired(tagged.stats)


def _earlier(config: DedupConfig) -> dict[str, Start]:
    """The documents of other runs that a run's own are compared with."""
    places = enumerate(config.against)
    return {f"{AGAINST}{n}": Start(bundle=place_here(at), url=at if is_url(at) else None) for n, at in places}


def _training_stage(config: RunConfig, name: str) -> Stage:
    rows = dict.fromkeys("tokens" if kind == "tokens" else "rows" for kind in config.rows_of(name))
    inputs = ("tokenizer", *rows, *needed_stages(name, config.train, config.starts))
    measured = _rows_stages(config, config.measured_tasks(name))
    settings = partial(keys.training, name=name)
    bundles = {role: start for role, start in config.models_needed(name).items() if start.bundle is not None}
    opens = rows_of(config.measured_tasks(name), config.documents_stages) | _weights_opened(config, name)
    return Stage(
        name, "train", inputs, settings, bundles, on_all_processes=True,
        arguments={"name": name}, measured=measured, opens=opens, lacks=config.missing_rows(name),
    )  # fmt: skip


def _weights_opened(config: RunConfig, name: str) -> dict[str, Opened]:
    """What a training stage opens of others: final weights, and the checkpoint of a run that it goes on with."""
    train, start = config.train[name], config.starts[name]
    opens: dict[str, Opened] = dict.fromkeys(needed_stages(name, config.train, config.starts), final_weights)
    if start.stage is not None and start.step is not None:
        named = {other.stage for other in named_models(train, config.train).values()}
        opens[start.stage] = everything if start.stage in named else partial(checkpoint, step=start.step)
    return opens


def _evaluations(config: RunConfig) -> Iterator[Stage]:
    if config.evaluate is None:
        return
    if (first := _compared_with_baseline(config)) is not None:
        inputs = (*config.documents_stages, "tokens", first)
        opens = dict.fromkeys(config.documents_stages, HELD_OUT) | {first: nothing}
        yield Stage(
            "baseline", "baseline", inputs, lambda c: {"seed": c.seed}, arguments={"trained": first}, opens=opens
        )
    rows, read = _rows_stages(config, config.tasks), rows_of(config.tasks, config.documents_stages)
    for name in config.training_stages:
        inputs = (name, "tokenizer", *rows)
        settings, opens = partial(keys.evaluation, trained=name), read | {name: final_weights}
        yield Stage(
            EVALUATE + name, "evaluate", inputs, settings, on_all_processes=True, arguments={"trained": name},
            opens=opens,
        )  # fmt: skip


def _rows_stages(config: RunConfig, tasks: Iterable[TaskConfig]) -> tuple[str, ...]:
    """The stages that make rows of tasks."""
    return with_corpora((stage for stage in map(rows_stage, tasks) if stage is not None), config.documents_stages)


def _win_rates(config: RunConfig) -> Iterator[Stage]:
    if config.win_rates is None:
        return
    opens = dict.fromkeys(config.win_rates.stages, final_weights) | {"rows": matching(f"{config.win_rates.rows}-*")}
    inputs = ("tokenizer", "rows", *config.win_rates.stages)
    yield Stage(WIN_RATES, "win_rates", inputs, keys.win_rates, on_all_processes=True, opens=opens)


def _compared_with_baseline(config: RunConfig) -> str | None:
    """The first stage with an objective on tokens, if a task measures the documents' held-out text."""
    if not any(task.kind == "bits_per_byte" and rows_stage(task) == DOCUMENTS for task in config.tasks):
        return None
    return next((name for name in config.training_stages if config.rows_of(name)[0] == "tokens"), None)


def _releases(config: RunConfig) -> Iterator[Stage]:
    yield Stage("export", "export", (config.exported, "tokenizer"), keys.export, opens={config.exported: final_weights})
    evaluation = () if config.evaluate is None else (EVALUATE + config.exported,)
    yield Stage("register", "register", ("export", *evaluation), _gate, still_holds=_is_registered)
    evaluations = [EVALUATE + name for name in config.evaluated]
    data = [stage.name for stage in _data_stages(config)]
    baseline = ["baseline"] if config.evaluate is not None and _compared_with_baseline(config) else []
    compared = [] if config.win_rates is None else [WIN_RATES]
    inputs = (*data, *config.training_stages, *baseline, *evaluations, *compared, "export", "register")
    opens = {WIN_RATES: nothing} | dict.fromkeys((*data, *config.training_stages, "register"), figures)
    yield Stage("report", "report", inputs, lambda c: {"price": c.price.plain(), "name": c.name}, opens=opens)


def _gate(config: RunConfig) -> dict[str, Any]:
    return {"gate": config.gate.plain()}


def _is_registered(config: RunConfig, registration: Artifact) -> bool:
    """Whether the registry's candidate is still this registration's version. False if the registry was deleted, or if
    another run in this folder has since registered its own version."""
    if not config.registry_path.is_file():
        return False
    return Registry(config.registry_path).aliases().get(CANDIDATE) == registration.stats["version"]
