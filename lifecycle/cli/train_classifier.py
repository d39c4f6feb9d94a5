"""`lifecycle data train-classifier`: a classifier of documents, from good and bad examples or from grades."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import SEED, AsJson
from lifecycle.cli.display import print_json
from lifecycle.cli.documents import CorpusName, documents_folder
from lifecycle.cli.outputs import takes_file
from lifecycle.core.config import ConfigError
from lifecycle.data.config import Format

type Good = Annotated[
    Sequence[Path], Parameter(help="Files and folders of documents that are wanted.", consume_multiple=True)
]
type Bad = Annotated[
    Sequence[Path], Parameter(help="Files and folders of documents that are not.", consume_multiple=True)
]
type Scores = Annotated[Path | None, Parameter(help="Grades by `lifecycle data score`, instead of examples.")]
type Documents = Annotated[
    str | None, Parameter(help="The run's YAML file, or the folder with the documents, that was graded.")
]
type Threshold = Annotated[float | None, Parameter(help="Documents with a lower grade are the bad ones.")]
type Out = Annotated[Path, Parameter(help="The classifier's file, NAME.npz.", validator=takes_file)]
type Seed = Annotated[
    int, Parameter(help="Decides which examples are held out, and the order of the others.", validator=SEED)
]
type Read = Annotated[Format | None, Parameter(name="format", help="Of the files, where names do not tell: mail.")]

NONE: Sequence[Path] = ()


def train_classifier(
    out: Out, /, *, good: Good = NONE, bad: Bad = NONE, scores: Scores = None, documents: Documents = None,
    threshold: Threshold = None, seed: Seed = 0, read: Read = None, corpus: CorpusName = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Trains a classifier and says what it is worth on held-out examples; `data.classifiers` names its file.

    A document's score is the probability that it is one of the bad.
    """
    from lifecycle.data.measures.classifier_training import train_classifier as train
    from lifecycle.data.measures.classifier_training import train_on_scores

    if scores is not None and documents is not None and threshold is not None and not (good or bad or read):
        found = train_on_scores(scores, documents_folder(documents, (), corpus), threshold, out, seed)
    elif good and bad and not (scores or documents or threshold is not None or corpus):
        found = train(good, bad, out, seed, read)
    else:
        raise ConfigError("give --good and --bad examples, or --scores FILE with --documents CONFIG and --threshold N")
    if as_json:
        print_json(found)
        return
    heldout = found.pop("heldout")
    print(", ".join(f"{name} {value:,}" for name, value in found.items()))
    print("held out: " + ", ".join(f"{name} {value:,.4g}" for name, value in heldout.items()))
    print(out)
