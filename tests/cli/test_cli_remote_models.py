"""Published models at addresses: the files that an import reads, and what its bundle says of them."""

import json
from pathlib import Path

import pytest
from obstore.store import MemoryStore
from safetensors.numpy import load_file, save_file

from lifecycle.cli.import_weights import import_gguf, import_model, import_safetensors
from lifecycle.cli.remote_models import published_at
from lifecycle.core.artifact import open_artifact
from lifecycle.core.config import ConfigError
from lifecycle.core.store import Store
from lifecycle.inference.bundle import load_bundle
from lifecycle.weights.published import INDEX, WEIGHTS
from tests.website import Website

TINY = Path(__file__).parents[1] / "golden/gguf_files/tiny.gguf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A published folder, with its weights in two files."""
    folder = tmp_path_factory.mktemp("published") / "model"
    import_gguf(TINY, folder)
    tensors = load_file(folder / WEIGHTS)
    half = len(tensors) // 2
    parts = {
        f"model-{n}-of-2.safetensors": list(tensors)[part] for n, part in enumerate((slice(half), slice(half, None)), 1)
    }
    for name, names in parts.items():
        save_file({tensor: tensors[tensor] for tensor in names}, folder / name)
    index = {"weight_map": {tensor: name for name, names in parts.items() for tensor in names}}
    (folder / INDEX).write_text(json.dumps(index))
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(b"the same, for another tool")
    return folder


@pytest.mark.parametrize("where", ["web", "store"])
def test_a_model_at_an_address_gives_the_bundle_of_its_folder(
    where: str, model: Path, tmp_path: Path, website: Website, in_memory: dict[str, MemoryStore]
) -> None:
    address = website.add(model, "org/model/resolve/main") if where == "web" else "gs://models/model"
    for file in model.iterdir():
        Store("gs://models/model").upload(file, file.name)
    import_safetensors(model, tmp_path / "here")
    import_model(address, tmp_path / "there")
    assert load_bundle(tmp_path / "there").version == load_bundle(tmp_path / "here").version
    recorded = open_artifact(tmp_path / "there").manifest.config
    assert recorded["source"] == address and all(recorded["tags"].values())
    assert {"config.json", "tokenizer.json", "model-2-of-2.safetensors"} <= recorded["tags"].keys()
    assert "pytorch_model.bin" not in recorded["tags"]
    assert not (published_at(address) / "pytorch_model.bin").exists()


def test_a_gguf_file_a_tokenizer_and_a_template_may_be_at_addresses(
    model: Path, tmp_path: Path, website: Website
) -> None:
    website.files |= {
        "tiny.gguf": TINY.read_bytes(),
        "own.jinja": b"{% for m in messages %}{{ m.content }}{% endfor %}",
    }
    own = website.add(model, "tokenizer")
    import_model(
        f"{website.url}/tiny.gguf?download=true", tmp_path / "out", tokenizer=own, template=f"{website.url}/own.jinja"
    )
    assert load_bundle(tmp_path / "out").template.source.startswith("{% for m")
    assert not [name for _, name in website.answers if name.endswith(".safetensors")]
    with pytest.raises(ConfigError, match=f"^{website.url}/nothing: no model here"):
        import_model(f"{website.url}/nothing", tmp_path / "other")


def test_a_model_that_is_published_again_leaves_no_weights_of_the_earlier(model: Path, website: Website) -> None:
    address = website.add(model, "model")
    assert {file.name for file in published_at(address).glob("*.safetensors")} >= {"model-1-of-2.safetensors"}
    del website.files[f"model/{INDEX}"]
    website.files[f"model/{WEIGHTS}"] = b"all in one"
    assert [file.name for file in published_at(address).glob("*.safetensors")] == [WEIGHTS]
    website.files[f"model/{INDEX}"] = json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}).encode()
    with pytest.raises(ConfigError, match=r"index.json: names '../../elsewhere.safetensors', which is not a file of"):
        published_at(address)
