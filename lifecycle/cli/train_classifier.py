"""`lifecycle data train-classifier`: a classifier of documents, from good and bad examples."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from lifecycle.cli.arguments import AsJson
from lifecycle.cli.display import print_json
from lifecycle.data.config import Format

type Good = Annotated[
    list[Path], Parameter(help="Files and folders of documents that are wanted.", consume_multiple=True)
]
type Bad = Annotated[list[Path], Parameter(help="Files and folders of documents that are not.", consume_multiple=True)]
type Out = Annotated[Path, Parameter(help="The classifier's file, NAME.npz.")]
type Seed = Annotated[int, Parameter(help="Decides which examples are held out, and the order of the others.")]
type Read = Annotated[Format | None, Parameter(name="format", help="Of the files, where names do not tell: mail.")]


def train_classifier(
    out: Out, /, *, good: Good, bad: Bad, seed: Seed = 0, read: Read = None, as_json: AsJson = False
) -> None:
    """Trains a classifier and says what it is worth on held-out examples; `data.classifiers` names its file.

    A document's score is the probability that it is one of the bad.
    """
    from lifecycle.data.measures.classifier_training import train_classifier as train

    found = train(good, bad, out, seed, read)
    if as_json:
        print_json(found)
        return
    heldout = found.pop("heldout")
    print(", ".join(f"{name} {value:,}" for name, value in found.items()))
    print("held out: " + ", ".join(f"{name} {value:,.4g}" for name, value in heldout.items()))
    print(out)
