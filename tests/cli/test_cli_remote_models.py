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
    assert not (published_at(address)[0] / "pytorch_model.bin").exists()


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
    assert {file.name for file in published_at(address)[0].glob("*.safetensors")} >= {"model-1-of-2.safetensors"}
    del website.files[f"model/{INDEX}"]
    website.files[f"model/{WEIGHTS}"] = b"all in one"
    folder, origin = published_at(address)
    assert [file.name for file in folder.glob("*.safetensors")] == [WEIGHTS]
    assert origin is not None and WEIGHTS in origin.tags
    assert not {INDEX, "model-1-of-2.safetensors"} & origin.tags.keys()


@pytest.mark.parametrize(
    ("index", "message"),
    [
        (b"{", "not an index of tensors"),
        (b'{"weight_map": ["a"]}', "not an index of tensors"),
        (b'{"weight_map": {"a": "x.safetensors"}}', "names x.safetensors, not to be found there"),
        *(
            (json.dumps({"weight_map": {"a": name}}).encode(), "is not the name of a safetensors file")
            for name in ("..", "", "a\0.safetensors", "../../x.safetensors", "config.json")
        ),
    ],
)
@pytest.mark.parametrize("where", ["web", "store"])
def test_an_index_that_is_wrong_is_named_by_its_address(
    where: str, index: bytes, message: str, website: Website, in_memory: dict[str, MemoryStore]
) -> None:
    store, address = Store("gs://models/model"), f"{website.url}/model"
    for name, content in {"config.json": b"{}", INDEX: index, "y.safetensors": b""}.items():
        store.write(name, content)
        website.files[f"model/{name}"] = content
    shown = address if where == "web" else store.url
    with pytest.raises(ValueError, match=rf"^{shown}/{INDEX}: .*{message}"):
        published_at(f"{address}?token=1" if where == "web" else shown)


@pytest.mark.parametrize(
    ("objects", "copied"),
    [
        (("config.json", INDEX, "model-1.safetensors", "consolidated.safetensors", "a.gguf", "b.gguf"),
         {"config.json", INDEX, "model-1.safetensors"}),
        (("config.json", WEIGHTS, "other.safetensors"), {"config.json", WEIGHTS}),
        (("config.json", "a.safetensors", "b.safetensors"), {"config.json", "a.safetensors", "b.safetensors"}),
        (("config.json", "a.gguf", "read.me"), {"a.gguf"}),
        (("read.me",), set()),
    ],
)  # fmt: skip
def test_of_a_folder_in_a_store_one_form_is_copied(
    objects: tuple[str, ...], copied: set[str], website: Website, in_memory: dict[str, MemoryStore]
) -> None:
    for name in objects:
        Store("gs://models/model").write(name, b'{"weight_map": {"a": "model-1.safetensors"}}')
    folder, origin = published_at("gs://models/model")
    assert {file.name for file in folder.iterdir()} == copied
    assert origin is not None and origin.tags.keys() == copied


def test_of_several_gguf_files_in_a_store_none_is_copied(website: Website, in_memory: dict[str, MemoryStore]) -> None:
    for name in ("a.gguf", "b.gguf"):
        Store("gs://models/model").write(name, b"")
    with pytest.raises(ConfigError, match=r"^gs://models/model: 2 GGUF files; .*: a.gguf, b.gguf"):
        published_at("gs://models/model")


def test_a_bundle_s_manifest_has_no_query(tmp_path: Path, website: Website) -> None:
    website.files["tiny.gguf"] = TINY.read_bytes()
    import_model(f"{website.url}/tiny.gguf?X-Amz-Signature=SECRET", tmp_path / "out")
    assert open_artifact(tmp_path / "out").manifest.config["source"] == f"{website.url}/tiny.gguf"
    assert "SECRET" not in (tmp_path / "out/manifest.json").read_text()
