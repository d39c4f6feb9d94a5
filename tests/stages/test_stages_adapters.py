"""A run whose stages train adapters: two on one base, one that goes on, weights with what it learned, and its files."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.cli.export_adapter import export_adapter
from lifecycle.core.artifact import Artifact
from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS, read_log
from lifecycle.inference.bundle import load_bundle
from lifecycle.model.adapters import adapter_tree, with_adapters
from lifecycle.model.config import ModelConfig
from lifecycle.model.decoder import forward
from lifecycle.model.embedding import logits
from lifecycle.model.params import Params, layers_apart
from lifecycle.model.stacks import SCORE
from lifecycle.stages import keys
from lifecycle.stages.adapters import merged_params
from lifecycle.stages.chain import bring_up_to_date
from lifecycle.stages.config import RunConfig
from lifecycle.stages.export import bundled_part, export_weights
from lifecycle.stages.weights import trained_params, trained_params_in_use
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.training.adapter import ADAPTER_FILES
from lifecycle.weights.adapters import read_adapter
from lifecycle.weights.published import load_config, load_weights, save_weights, write_config

pytestmark = pytest.mark.slow  # a whole run of stages, half a minute

MODEL = {"vocab_size": 264, "d_model": 64, "d_ff": 64, "num_layers": 1, "num_heads": 2, "num_kv_heads": 2,
         "head_dim": 32, "max_seq_len": 128, "compute_dtype": "float32"}  # fmt: skip
SIZES = {"steps": 2, "seq_len": 128, "global_batch_size": 4, "eval_every": 2, "log_every": 1,
         "optimizer": {"learning_rate": 0.01}}  # fmt: skip
LORA = {"rank": 2, "alpha": 6, "targets": ["q", "v"], "scaling": "rslora"}
DORA = {"rank": 2, "kind": "dora", "base": "nf4"}
TOKENS = np.random.default_rng(0).integers(0, 256, (2, 12))


@partial(jax.jit, static_argnums=0)
def all_logits(config: ModelConfig, params: Params) -> jax.Array:
    positions = jnp.broadcast_to(jnp.arange(TOKENS.shape[1]), TOKENS.shape)
    return logits(config, params, forward(config, params, jnp.asarray(TOKENS), positions))


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run's settings: two adapters beside a bundle's weights, and what goes on from the first."""
    folder = tmp_path_factory.mktemp("run")
    bundle, model, words = folder / "bundle", ModelConfig.model_validate(MODEL), ByteTokenizer()
    bundle.mkdir()
    save_weights(model, random_params(model, 3), bundle)
    words.save(bundle)
    ChatTemplate(words).save(bundle)
    chats = [[{"role": "user", "content": f"{i}?"}, {"role": "assistant", "content": f"It is {i}."}] for i in range(24)]
    pairs = [{"prompt": f"{i}?", "chosen": f"It is {i}.", "rejected": "No."} for i in range(24)]
    return {
        "name": "adapted",
        "root": folder,
        "rows": {
            "chat": [written(folder / "chat.jsonl", [{"messages": turns} for turns in chats])],
            "pairs": [written(folder / "pairs.jsonl", pairs)],
            "heldout_fraction": 0.3,
        },
        "tokenizer": {"kind": "bytes"},
        "model": MODEL,
        "train": {
            "chat": {"objective": "sft", "from": str(bundle), "adapter": LORA, **SIZES},
            "short": {"objective": "sft", "from": str(bundle), "adapter": DORA, **SIZES},
            "prefer": {"objective": "dpo", "from": "chat", "adapter": LORA | {"from": "previous"}, **SIZES},
            "anew": {"objective": "dpo", "from": "chat", "reference": "base", "adapter": LORA, **SIZES},
            "moved": {"objective": "dpo", "from": "chat", "reference": "copy", "ref_model_sync_steps": 1, **SIZES},
            "plain": {"objective": "sft", "from": "chat", **SIZES},
            "judge": {"objective": "reward_model", "from": "chat", "adapter": LORA, **SIZES},
            "judge-on": {"objective": "reward_model", "from": "judge", "adapter": LORA | {"from": "previous"}, **SIZES},
            "judge-anew": {"objective": "reward_model", "from": "judge", "adapter": LORA, **SIZES},
        },
        "export": {"of": "prefer"},
    }


@pytest.fixture(scope="module")
def config(tree: dict[str, Any]) -> RunConfig:
    return validate(RunConfig, tree)


@pytest.fixture(scope="module")
def made(config: RunConfig) -> dict[str, Artifact]:
    return dict(bring_up_to_date(config, ["export", "anew", "moved", "plain", "judge-on", "judge-anew"], Silent()))


def records(artifact: Artifact, name: str) -> list[float]:
    return [record[name] for record in read_log(artifact.path / METRICS) if name in record]


def test_only_the_adapter_moves_and_checkpoints_have_it_alone(config: RunConfig, made: dict[str, Artifact]) -> None:
    bundle = load_bundle(config.starts["chat"].bundle or Path())
    model = config.trained_model("chat")
    params = trained_params(made["chat"], model)
    for name in ("embed", "norm", "head", "blocks"):
        jax.tree.map(np.testing.assert_array_equal, params[name], bundle.params[name])
    moved = trained_params_in_use(made["chat"], model)
    assert {name for name, weight in moved["blocks"]["0+1"]["attention"].items()
            if not np.array_equal(weight, bundle.params["blocks"]["0+1"]["attention"][name])} == {"q", "v"}  # fmt: skip
    assert made["chat"].stats["adapter_parameters"] == 2 * 2 * (64 + 64)
    checkpoint = made["chat"].path / "checkpoints" / "2"
    size = sum(file.stat().st_size for file in (checkpoint / "params").rglob("*") if file.is_file())
    assert size < 40_000 < 4 * made["chat"].stats["parameters"]


def test_a_fresh_adapter_begins_as_the_weights_that_it_is_beside(made: dict[str, Artifact]) -> None:
    """The reference is the initial model: what `chat` learned, whether its adapter goes on or was added."""
    for stage in ("prefer", "anew"):
        assert records(made[stage], "loss")[0] == pytest.approx(np.log(2), rel=1e-5)
    ended = records(made["chat"], "heldout_loss")[-1]
    assert records(made["plain"], "heldout_loss")[0] == pytest.approx(ended, rel=1e-5)
    begun = [records(made[stage], "heldout_loss")[0] for stage in ("prefer", "anew")]
    assert begun[0] == pytest.approx(begun[1], rel=1e-5)


@pytest.mark.parametrize("stage", ["prefer", pytest.param("short", marks=pytest.mark.long)])
def test_the_exported_weights_are_those_that_were_trained(
    config: RunConfig, tree: dict[str, Any], made: dict[str, Artifact], stage: str
) -> None:
    of_stage = validate(RunConfig, tree | {"export": {"of": stage}})
    again = made | dict(bring_up_to_date(of_stage, ["export"], Silent()))
    exported, sizes = again["export"], {"prefer": 2 * 2 * (64 + 64), "short": 7 * (2 * 128 + 64)}
    assert again[stage].stats["adapter_parameters"] == sizes[stage]
    model, bundle = config.trained_model(stage), load_bundle(exported.path)
    trained = all_logits(model, trained_params(again[stage], model))
    np.testing.assert_allclose(all_logits(bundle.config, bundle.params), trained, atol=1e-5)
    adapter = read_adapter(bundle.config, exported.path / "adapter")
    assert adapter.has_magnitudes == (stage == "short")
    base = load_bundle(config.starts["chat"].bundle or Path()).params
    if stage == "prefer":
        bank = adapter_tree(bundle.config, adapter.matrices, adapter.rank, "float32")  # as a server has it
        served = with_adapters(layers_apart(bundle.config, base), bank, jnp.asarray([0], jnp.int32))
        np.testing.assert_allclose(all_logits(bundle.config, served), trained, atol=1e-5)
    settings = json.loads((exported.path / "adapter" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(config.starts["chat"].bundle)
    assert (settings["r"], settings["use_dora"]) == (2, stage == "short")


def test_a_score_is_trained_beside_an_adapter_and_stays_with_it(config: RunConfig, made: dict[str, Artifact]) -> None:
    """The stages that go on begin where the first has ended, whether its adapter goes on or was added."""
    last = records(made["judge"], "heldout_loss")[-1]
    for name in ("judge-on", "judge-anew"):
        first = records(made[name], "heldout_loss")[0]
        assert first == pytest.approx(last, rel=1e-5)
    scores = [trained_params(made[name], config.trained_model(name))[SCORE] for name in ("judge", "judge-on")]
    assert scores[0].dtype == jnp.float32 and not np.array_equal(*scores)


def test_a_reward_model_is_exported_with_its_score(
    config: RunConfig, made: dict[str, Artifact], tmp_path: Path
) -> None:
    model = config.trained_model("judge")
    export_weights(model, made["judge"], tmp_path, is_scorer=True)
    write_config(bundled_part(model, is_scorer=True), tmp_path)
    held = load_config(tmp_path, may_score=True)
    params = trained_params(made["judge"], model)
    whole = merged_params(model, params, None)
    found = load_weights(held, tmp_path)
    np.testing.assert_array_equal(found[SCORE], params[SCORE])
    queries, expected = (tree["blocks"]["0+1"]["attention"]["q"] for tree in (found, whole))
    np.testing.assert_allclose(queries, expected, atol=1e-6)
    assert held.has_score and "head" not in found


def test_an_adapter_is_written_apart(config: RunConfig, made: dict[str, Artifact], tmp_path: Path) -> None:
    export_adapter(config, "prefer", tmp_path / "apart")
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "apart" / file).read_bytes() == (made["export"].path / "adapter" / file).read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        export_adapter(config, "prefer", tmp_path / "apart")
    with pytest.raises(ConfigError, match=r"train\.plain trains no adapter"):
        export_adapter(config, "plain", tmp_path / "other")


def changed(tree: dict[str, Any], stage: str, **settings: Any) -> dict[str, Any]:
    return tree | {"train": tree["train"] | {stage: tree["train"][stage] | settings}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: changed(tree, "chat", **{"from": "fresh"}), "an adapter is trained beside finished weights"),
        (lambda tree: changed(tree, "chat", adapter={"from": "previous"}), "bundle has trained no adapter"),
        (lambda tree: changed(tree, "prefer", adapter=LORA | {"from": "previous", "rank": 3}), "other values of rank;"),
        (lambda tree: tree | {"model": MODEL | {"adapter": {}}}, "set train.STAGE.adapter instead"),
        (lambda tree: changed(tree, "short", adapter={"targets": ["q_up"]}), "no 'q_up' that can be adapted"),
        (lambda tree: changed(tree, "short", adapter={"rank": 65}), "rank=65 is above model.d_model=64"),
        (lambda tree: tree | {"mesh": {"fsdp": 2}}, "has 64, cut into 2 by the mesh: leave it out, or use a mesh"),
    ],
)
def test_what_a_run_cannot_have_is_refused_when_it_is_read(tree: dict[str, Any], change: Any, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        validate(RunConfig, change(tree))
    assert message in str(refused.value)


def test_an_adapters_files_are_needed_and_count(tree: dict[str, Any], tmp_path: Path) -> None:
    """The stage's key has their content, whatever the folder is called."""
    folders = [tmp_path / name for name in ("one", "two")]
    runs = [validate(RunConfig, changed(tree, "chat", adapter=LORA | {"from": str(folder)})) for folder in folders]
    with pytest.raises(ConfigError, match=r"no adapter_config\.json here"):
        keys.training(runs[0], "chat")
    for folder in folders:
        folder.mkdir()
        for file in ADAPTER_FILES:
            (folder / file).write_text("content")
    assert keys.training(runs[0], "chat") == keys.training(runs[1], "chat")
    (folders[1] / ADAPTER_FILES[1]).write_text("other content")
    assert keys.training(runs[0], "chat") != keys.training(runs[1], "chat")


@pytest.mark.slow
def test_a_stage_goes_on_from_the_files_of_an_adapter(tree: dict[str, Any], made: dict[str, Artifact]) -> None:
    folder = made["export"].path / "adapter"
    further = tree["train"]["chat"] | {"adapter": LORA | {"from": str(folder)}}
    again = validate(RunConfig, tree | {"train": {"chat": further}, "rows": tree["rows"] | {"pairs": []}, "export": {}})
    artifact = bring_up_to_date(again, ["chat"], Silent())["chat"]
    plain = {"objective": "sft", "from": str(made["export"].path), **SIZES}
    merged_start = {"train": {"chat": plain}, "rows": tree["rows"] | {"pairs": []}, "export": {}}
    other = bring_up_to_date(validate(RunConfig, tree | merged_start), ["chat"], Silent())["chat"]
    assert records(artifact, "heldout_loss")[0] == pytest.approx(records(other, "heldout_loss")[0], rel=1e-5)


@pytest.mark.long
def test_a_run_goes_on_from_a_checkpoint_as_if_it_had_been_one(tree: dict[str, Any]) -> None:
    """Its adapter's settings come along, and with the same rates so do the bits."""
    constant = {"learning_rate": 0.01, "schedule": {"kind": "constant"}}
    chat = tree["train"]["chat"] | {"adapter": DORA, "steps": 4, "optimizer": constant}
    stages = {"chat": chat | {"checkpoint": {"every": 2, "keep_every": 2}}, "more": {"from": "chat@2", "steps": 4}}
    own = {"train": stages, "rows": tree["rows"] | {"pairs": []}, "export": {}}
    made = bring_up_to_date(validate(RunConfig, tree | own), ["chat", "more"], Silent())
    assert made["more"].stats["params_hash"] == made["chat"].stats["params_hash"]
    assert made["more"].stats["adapter_parameters"] == made["chat"].stats["adapter_parameters"]
