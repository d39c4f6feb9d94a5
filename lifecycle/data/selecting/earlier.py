"""Earlier corpora: documents artifacts of other runs, or their signatures, whose documents count as taken.

A new document that is the same as one of theirs, or nearly, is removed; nothing of theirs is written to the new corpus.
Their held-out documents count too: a model that is measured on them must not learn them later. datatrove keeps an index
of signatures for this (`MinhashBuildIndex`) and removes what meets one of them. Here a pair counts as it does within a
corpus, by the true Jaccard similarity, so the earlier corpus is needed with its texts or with all their shingles
(`signatures.py`); Lee et al. 2022 (arXiv:2107.06499, section 4.2) look at the texts of MinHash's candidates, too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lifecycle.core.artifact import Artifact, ArtifactError, artifact_path, open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.fetched import place_here
from lifecycle.core.web_address import shown
from lifecycle.data.config import DedupConfig
from lifecycle.data.documents import Stretch, document_files, names_of, num_documents, stretches_of
from lifecycle.data.measures.minhash import FUNCTIONS
from lifecycle.data.selecting.signatures import FILES as SIGNATURES
from lifecycle.data.selecting.signatures import TAKEN

# The files with the documents, by the stage or verb that makes such an artifact.
PREFIXES: Mapping[str, Sequence[str]] = {"documents": TAKEN, SIGNATURES: (SIGNATURES,)}
SIGNATURE = "signature"  # in its stats: what decides `bands`


@dataclass(frozen=True)
class EarlierCorpus:
    """An earlier corpus: the name of its artifact, as its stage gave it, and the files with its documents."""

    name: str
    files: Sequence[Path]


@dataclass(frozen=True)
class Pool:
    """The documents that are compared: a run's own, and behind them those of earlier corpora.

    `ranks` has an entry for each: of a group of duplicates the document with the lowest stays, and earlier ones come
    before all own ones. `corpora`: the ordinal of each corpus's first document, and its name.
    """

    stretches: Sequence[Stretch]
    ranks: NDArray[np.int64]
    num_own: int
    corpora: Sequence[tuple[int, str]] = ()

    @classmethod
    def of(cls, own: Sequence[Stretch], ranks: NDArray[np.int64], earlier: Sequence[EarlierCorpus]) -> "Pool":
        """A run's documents with their ranks, and those of earlier corpora."""
        stretches, corpora = list(own), list[tuple[int, str]]()
        for corpus in earlier:
            corpora.append((num_documents(stretches), corpus.name))
            stretches += stretches_of(corpus.files, num_documents(stretches))
        num_own, num_earlier = len(ranks), num_documents(stretches) - len(ranks)
        return cls(stretches, np.concatenate([ranks + num_earlier, np.arange(num_earlier)]), num_own, corpora)

    def with_earlier(self, chosen: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Flags of the run's documents, with those of earlier ones, which all count."""
        return np.concatenate([chosen, np.ones(len(self.ranks) - self.num_own, bool)])

    def names(self, ordinals: NDArray[np.int64]) -> Mapping[int, str]:
        """The names of some documents, by ordinal; those of earlier corpora say of which one. `ordinals` ascend."""
        found = names_of(self.stretches, ordinals)
        return {ordinal: name + self._corpus_of(ordinal) for ordinal, name in found.items()}

    def _corpus_of(self, ordinal: int) -> str:
        return next((f" of {name}" for first, name in reversed(self.corpora) if ordinal >= first), "")


def signature_of(config: DedupConfig) -> dict[str, int | str]:
    """What decides `bands`, for the stats of the documents: settings and hash functions."""
    return {"bands": config.bands, "rows": config.rows, "functions": FUNCTIONS}


def earlier_corpora(config: DedupConfig) -> list[EarlierCorpus]:
    """The corpora that the settings name; raises `ConfigError` for a folder without one, and for one whose signatures
    were made with other settings."""
    return [_opened(place, config) for place in config.against]


def _opened(place: str, config: DedupConfig) -> EarlierCorpus:
    folder = place_here(place)
    at = f"data.dedup.against: {shown(place)}"
    try:
        artifact = open_artifact(folder)
    except ArtifactError as error:
        raise ConfigError(
            f"{at}: {str(error).removeprefix(f'{folder}: ')}; give the folder documents-... of a finished run"
        ) from None
    manifest = artifact.manifest
    if manifest.stage not in PREFIXES:
        raise ConfigError(f"{at}: made by stage {manifest.stage}; give the folder of stage documents, documents-...")
    _require_same_keys(at, artifact, signature_of(config))
    files = [file for prefix in PREFIXES[manifest.stage] for file in document_files(folder.absolute(), prefix)]
    return EarlierCorpus(artifact_path(folder, manifest.stage, manifest.key).name, files)


def _require_same_keys(at: str, artifact: Artifact, own: Mapping[str, int | str]) -> None:
    made: Mapping[str, Any] = artifact.stats.get(SIGNATURE, {})
    if made.get("functions") != own["functions"]:
        raise ConfigError(
            f"{at}: another version made its keys of near-duplicates, with other hash functions, so none would meet; "
            "run its stage again"
        )
    if differing := [name for name in own if made[name] != own[name]]:
        there = ", ".join(f"data.dedup.{name}={made[name]}" for name in differing)
        here = ", ".join(f"data.dedup.{name}={own[name]}" for name in differing)
        raise ConfigError(
            f"{at}: its documents have keys of {there}, this run's of {here}, so none would meet; set {there} here "
            "(the sources are tagged again), or make the earlier documents again with this run's settings"
        )
