"""`lifecycle data signatures`: what later corpora are compared with, without the texts."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import Overrides
from lifecycle.cli.display import progress_on
from lifecycle.cli.documents import CorpusName, documents_folder
from lifecycle.cli.outputs import takes_folder
from lifecycle.cli.terminal import terminal
from lifecycle.core.artifact import MANIFEST, Draft, open_artifact

type Documents = Annotated[
    str, Parameter(help="The run's YAML file, or a folder or address with an artifact of stage `documents`.")
]
type Root = Annotated[Path, Parameter(help="The folder in which the artifact is made.", validator=takes_folder)]


def signatures(documents: Documents, out: Root, /, *overrides: Overrides, corpus: CorpusName = None) -> None:
    """Makes an artifact that `data.dedup.against` takes in place of the documents: hashes, and no text."""
    artifact = open_artifact(documents_folder(documents, overrides, corpus))
    from lifecycle.data.selecting.earlier import SIGNATURE
    from lifecycle.data.selecting.signatures import FILES, write_signatures  # pyarrow and Numba take a second

    draft = Draft(out, FILES, {}, {}, {"documents": artifact.path})
    if not (draft.final_path / MANIFEST).is_file():
        with progress_on(terminal(stderr=True)) as progress:
            num_documents = write_signatures(artifact.path, draft.open(), progress)
        draft.commit({"documents": num_documents, SIGNATURE: artifact.stats[SIGNATURE]})
    print(draft.final_path)
