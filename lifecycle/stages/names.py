"""Names that a run gives: of its stages, and of the aliases that it moves."""

import re
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager

from lifecycle.core.config import ConfigError

TAGGING, DOCUMENTS = "tagging", "documents"  # of a named corpus: `documents-CORPUS`
DATA_STAGES = (TAGGING, DOCUMENTS, "tokenizer", "tokens", "rows")
WIN_RATES = "win-rates"
OTHER_STAGES = ("baseline", "bundle", "export", "register", "report", WIN_RATES)
PRODUCTION, CANDIDATE = "production", "candidate"  # the aliases that a run moves
EVALUATE = "evaluate-"  # with a training stage's name: the stage that evaluates its weights
STAGE_NAME = re.compile(r"[a-z][a-z0-9_-]*")


def is_reserved(name: str) -> bool:
    """Whether a training stage cannot have this name, because a stage of another kind has it or may have it."""
    begins = (EVALUATE, f"{TAGGING}-", f"{DOCUMENTS}-")
    return name in (*DATA_STAGES, *OTHER_STAGES, PRODUCTION, CANDIDATE) or name.startswith(begins)


def of_corpus(kind: str, corpus: str) -> str:
    """The name of a corpus's stage; that of a run's only corpus without a name, which is "", is the kind."""
    return f"{kind}-{corpus}" if corpus else kind


@contextmanager
def naming(corpus: str) -> Generator[None]:
    """Mistakes that the block tells of say in which corpus they are: two may have a source of the same name."""
    try:
        yield
    except ConfigError as error:
        if not corpus:
            raise
        raise ConfigError(f"corpus {corpus}: {error}") from None


def by_corpus[T](kind: str, of_stages: Mapping[str, T]) -> dict[str, T]:
    """What the corpora's stages of a kind have, among others, by corpus, in the order of names: what is made of several
    corpora must not depend on their order in the run file, which no key has."""
    own = {name: of_stages[name] for name in sorted(of_stages) if is_of_kind(kind, name)}
    return {name.removeprefix(kind).removeprefix("-"): found for name, found in own.items()}


def is_of_kind(kind: str, name: str) -> bool:
    """Whether a stage is a corpus's, of a kind: `tagging` or `documents`."""
    return name == kind or name.startswith(f"{kind}-")


def with_corpora(names: Iterable[str], documents: Iterable[str]) -> tuple[str, ...]:
    """Names of stages, in which `documents` stands for those of all corpora."""
    documents = tuple(documents)
    return tuple(dict.fromkeys(n for name in names for n in (documents if name == DOCUMENTS else (name,))))
