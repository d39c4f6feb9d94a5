"""The documents of a small run from two sources, a small model, and settings for a client that does not wait."""

import json
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifecycle.core.config import load_config
from lifecycle.core.progress import Silent
from lifecycle.evals import chat_client
from lifecycle.evals.chat_client import ChatClient
from lifecycle.inference.model import Model
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.testing.models import random_model
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.weights.published import save_weights

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"
NOUNS = [
    "harbour",
    "letter",
    "garden",
    "engine",
    "river",
    "teacher",
    "window",
    "market",
    "winter",
    "bridge",
    "paper",
    "ladder",
    "orchard",
]
VERBS = ["holds", "carries", "follows", "changes", "reaches", "covers", "leaves", "meets", "builds", "finds"]


def essay(seed: int, sentences: int = 12) -> str:
    """Prose that passes the rules, in paragraphs of three sentences, unlike that of other seeds."""
    chance = random.Random(seed)
    pick = chance.choice
    said = [
        f"The {pick(NOUNS)} {pick(VERBS)} the {pick(NOUNS)} {chance.randint(2, 999)} that was in the {pick(NOUNS)} and "
        f"{pick(VERBS)} a {pick(NOUNS)} of {chance.randint(2, 999)}."
        for _ in range(sentences)
    ]
    return "\n\n".join(" ".join(said[at : at + 3]) for at in range(0, sentences, 3)) + "\n"


class Run:
    """A run's config as words for the command line, and its folders."""

    def __init__(self, root: Path) -> None:
        self.root, corpus = root, root / "corpus"
        (corpus / "own").mkdir(parents=True)
        for number in range(24):
            (corpus / "own" / f"{number:02d}.txt").write_text(essay(number))
        rows = [
            {"text": essay(100 + number), "url": f"https://pages.org/{number}", "license": "CC-BY-4.0"}
            for number in range(8)
        ]
        (corpus / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        sources = [
            {"name": "own", "path": str(corpus / "own"), "license": "CC0-1.0"},
            {"name": "pages", "path": str(corpus / "rows.jsonl")},
        ]
        self.words = (f"data.sources={json.dumps(sources)}", f"root={root / 'runs'}", "data.quality.repetition=null")

    def select(self, *settings: str) -> dict[str, Path]:
        """The folders of tagging and documents, brought up to date."""
        config = load_config(RunConfig, DEBUG, (*self.words, *settings))
        made = bring_up_to_date(config, ("tagging", "documents"), Silent())
        return {name: artifact.path for name, artifact in made.items()}


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return Run(tmp_path_factory.mktemp("annotated"))


@pytest.fixture(scope="session")
def documents(run: Run) -> Path:
    return run.select()["documents"]


def small_model() -> Model:
    return random_model(num_layers=1, max_seq_len=256)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle without a chat template."""
    model, folder = small_model(), tmp_path_factory.mktemp("bundle")
    save_weights(model.config, model.params, folder)
    ByteTokenizer().save(folder)
    return folder


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(chat_client.time, "sleep", lambda _: None)
    yield


def client(address: str, model: str = "m", key_variable: str = "", tries: int = 1, concurrency: int = 3) -> ChatClient:
    return ChatClient(address, model, key_variable, 60, tries, concurrency)
