"""Drafters in their published form: the folder `drafter` of a bundle, with `config.json` and safetensors.

The names are those of the published EAGLE-3 heads, which vLLM and SGLang open (their `llama_eagle3.py`): `midlayer` is
the block, `fc` the projection of the target's three features, `d2t` how far each draft's id is below the target's. A
head without `lm_head` drafts with its target's. What must hold: what is saved is loaded bit for bit; a head that does
not fit its target is rejected with what is wrong.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lifecycle.core.config import validate
from lifecycle.core.files import write_text
from lifecycle.core.json_file import read_json
from lifecycle.core.typing import PyTree
from lifecycle.model.config import DrafterConfig, ModelConfig
from lifecycle.model.drafter import VOCABULARY, block_config
from lifecycle.model.params import Params, drafter_parameters
from lifecycle.model.stacks import DRAFTER
from lifecycle.weights.families.layout import Layout, Location, locations, published_tensors, read_array, write_tensor
from lifecycle.weights.families.lookup import config_from
from lifecycle.weights.families.settings import WeightsError
from lifecycle.weights.names import canonical_name
from lifecycle.weights.published import CONFIG, FLOAT32, config_to_hf
from lifecycle.weights.safetensors_files import Planned, SafetensorsReader, listing, write_safetensors
from lifecycle.weights.tensor_parts import full_index

FOLDER = DRAFTER  # in a bundle
ARCHITECTURE = "LlamaForCausalLMEagle3"
# The layers whose inputs are read, as vLLM has them; below `eagle_config`, as SGLang has them, whose outputs are read.
LAYERS, OF_OUTPUTS = "eagle_aux_hidden_state_layer_ids", "eagle_config"
OFFSETS, IS_DRAFTED = "d2t", "t2d"
HEAD, IDS = f"{VOCABULARY}.head", f"{VOCABULARY}.ids"

MATRICES = locations(
    "midlayer.",
    {"attention.q": "self_attn.q_proj.weight", "attention.k": "self_attn.k_proj.weight",
     "attention.v": "self_attn.v_proj.weight", "attention.o": "self_attn.o_proj.weight",
     "feed_forward.gate": "mlp.gate_proj.weight", "feed_forward.up": "mlp.up_proj.weight",
     "feed_forward.down": "mlp.down_proj.weight"},
    transposed=True,
)  # fmt: skip
NORMS = locations(
    "midlayer.",
    {"embed_norm.scale": "input_layernorm.weight", "hidden_norm.scale": "hidden_norm.weight",
     "feed_forward_norm.scale": "post_attention_layernorm.weight"},
    transposed=False,
)  # fmt: skip
LAYOUT = Layout(
    {
        "projection": Location("fc.weight", transposed=True),
        **dict(MATRICES),
        **dict(NORMS),
        "norm.scale": Location("norm.weight"),
        HEAD: Location("lm_head.weight"),
    },
    {},
)


def write_drafter(config: ModelConfig, read: Callable[[str], np.ndarray], folder: Path) -> None:
    """Writes the drafter of a model into `folder`. `read` returns an array by its name in the drafter
    (`attention.q`)."""
    shapes = _shapes(config)
    is_smaller = shapes.pop(IDS, None) is not None
    tensors = published_tensors(config, LAYOUT, shapes)
    planned = {name: Planned(FLOAT32, tensor.shape) for name, tensor in tensors.items()}
    ids = read(IDS).astype(np.int64) if is_smaller else np.arange(config.vocab_size)
    if is_smaller:
        planned[OFFSETS] = Planned(np.dtype(np.int64), ids.shape)
        planned[IS_DRAFTED] = Planned(np.dtype(np.bool_), (config.vocab_size,))

    def tensor(name: str) -> np.ndarray:
        if name == OFFSETS:
            return ids - np.arange(len(ids))
        if name == IS_DRAFTED:
            return np.isin(np.arange(config.vocab_size), ids)
        return write_tensor(config, tensors[name], lambda array, _: read(array), np.dtype(np.float32))

    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder, planned, tensor)
    write_text(folder / CONFIG, json.dumps(_config_to_hf(config), indent=2) + "\n")


def load_drafter(
    target: ModelConfig, folder: Path, shardings: Callable[[ModelConfig], PyTree] | None = None
) -> tuple[ModelConfig, Params]:
    """The target's config with its drafter, and the drafter's arrays in float32, sharded by `shardings`, a function of
    that config (a tree like the arrays'), or on this process's first device.

    Raises `WeightsError` for a folder that is not a drafter of this model.
    """
    source = SafetensorsReader(folder)
    config = _config_from(target, read_json(folder / CONFIG, WeightsError), source.shapes, folder)
    ids = _ids(target, source, folder) if LAYOUT.trunk[HEAD].name in source.shapes else None
    declared = drafter_parameters(config)
    _require_fit(config, source.shapes, folder)

    def leaf(path: Any, known: Any, sharding: Any) -> jax.Array:
        name = canonical_name(path)
        out = np.empty(known.shape, np.float32)
        if name == IDS:
            out[...] = ids
        else:
            read_array(config, LAYOUT, source, name, full_index(known.shape), out)
        return jax.device_put(out, sharding)

    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    where = jax.tree.map(lambda _: here, declared) if shardings is None else shardings(config)
    return config, jax.tree_util.tree_map_with_path(leaf, declared, where)


def _shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    leaves = jax.tree_util.tree_leaves_with_path(drafter_parameters(config))
    return {canonical_name(path): known.shape for path, known in leaves}


def _config_to_hf(config: ModelConfig) -> dict[str, Any]:
    assert config.drafter is not None
    block = block_config(config)
    tree = config_to_hf(block.model_copy(update={"vocab_size": config.vocab_size}))
    tree |= {"architectures": [ARCHITECTURE], "draft_vocab_size": block.vocab_size}
    return tree | {LAYERS: list(config.drafter_layers)}


def _config_from(
    target: ModelConfig, tree: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]], folder: Path
) -> ModelConfig:
    """The target's config with the drafter that a published config describes."""
    if (found := tree.get("architectures")) != [ARCHITECTURE]:
        raise WeightsError(f"{folder / CONFIG}: architectures={found}, expected {ARCHITECTURE}, an EAGLE-3 head")
    held = config_from({**tree, "architectures": ["LlamaForCausalLM"], "model_type": "llama"})
    size = tree.get("draft_vocab_size") if LAYOUT.trunk[HEAD].name in shapes else None
    settings = {"vocab_size": size, "d_ff": held.d_ff, "layers": _layers(target, tree, folder)}
    drafter = validate(DrafterConfig, settings, where=str(folder / CONFIG))
    config = target.model_copy(update={"drafter": drafter})
    block = block_config(config)
    wrong = [
        f"{field}={getattr(held, field)!r}, for this model {wanted!r}"
        for field in ("d_model", "num_layers", "num_heads", "num_kv_heads", "head_dim", "rope_theta", "rope_scaling",
                      "norm_eps", "attention_bias", "vocab_size")
        if getattr(held, field) != (wanted := target.vocab_size if field == "vocab_size" else getattr(block, field))
    ]  # fmt: skip
    if wrong:
        raise WeightsError(
            f"{folder} is not a drafter for this model:\n{listing(wrong)}\nuse one that was trained for it"
        )
    return config


def _layers(target: ModelConfig, tree: Mapping[str, Any], folder: Path) -> list[int] | None:
    inputs, outputs = tree.get(LAYERS), (tree.get(OF_OUTPUTS) or {}).get(LAYERS)
    layers = [number + 1 for number in outputs] if inputs is None and outputs is not None else inputs
    if layers and max(layers) >= target.num_layers:
        raise WeightsError(f"{folder / CONFIG}: {LAYERS}={layers}, and the model has {target.num_layers} layers")
    return layers or None


def _require_fit(config: ModelConfig, shapes: Mapping[str, tuple[int, ...]], folder: Path) -> None:
    own = _shapes(config)
    own.pop(IDS, None)
    expected = {name: tensor.shape for name, tensor in published_tensors(config, LAYOUT, own).items()}
    wrong = [f"missing {name}" for name in expected if name not in shapes]
    wrong += [
        f"{name}: shape {shapes[name]}, the config says {shape}"
        for name, shape in expected.items()
        if shapes.get(name, shape) != shape
    ]
    ignored = {OFFSETS, IS_DRAFTED, "embed_tokens.weight"}  # a copy of the target's embedding
    wrong += [f"unknown {name}" for name in sorted(shapes.keys() - expected.keys() - ignored)]
    if wrong:
        raise WeightsError(f"{folder} does not fit its config:\n{listing(wrong)}\nuse all files of one EAGLE-3 head")


def _ids(target: ModelConfig, source: SafetensorsReader, folder: Path) -> np.ndarray:
    """The target's id of each draft."""
    num = source.shapes[LAYOUT.trunk[HEAD].name][0]
    offsets = np.zeros(num, np.int64)
    if OFFSETS in source.shapes:
        if source.shapes[OFFSETS] != (num,):
            raise WeightsError(f"{folder}: {OFFSETS} has shape {source.shapes[OFFSETS]}, and lm_head {num} rows")
        offsets = source.read(OFFSETS, (slice(0, num),))
    ids = np.arange(num) + offsets
    if ids.min() < 0 or ids.max() >= target.vocab_size or len(np.unique(ids)) < num:
        raise WeightsError(
            f"{folder}: {OFFSETS} does not give {num} different ids below vocab_size={target.vocab_size}; use the head "
            "that was published for this model"
        )
    return ids
