"""A family: a published name, a table of settings and a table of tensor names.

What must hold: a config survives the round trip. A config that a family's `config.json` cannot express is rejected with
the names of the fields, never written as something else.
"""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lifecycle.core.config import validate
from lifecycle.model.config import ModelConfig
from lifecycle.weights.families.layout import Layout
from lifecycle.weights.families.quantisation import unsupported
from lifecycle.weights.families.settings import (
    Key,
    LayerKinds,
    MissingKey,
    Only,
    Setting,
    Tree,
    WeightsError,
    all_global,
    require_forms,
    shortest_pattern,
)

# Fields that no published config has: how the model is trained and run, not what it is.
NOT_OF_THE_MODEL = {"compute_dtype", "context_attention", "moe.balance_weight", "moe.z_weight", "moe.bias_rate"}


# What a published architecture's name ends with, and the keys of one that scores texts.
GENERATES, SCORES = "ForCausalLM", "ForSequenceClassification"
ONE_LABEL = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}


def _head_dim(tree: Tree) -> int:
    return tree["hidden_size"] // tree["num_attention_heads"]


SIZES: tuple[Setting, ...] = (
    Key("vocab_size", "vocab_size"),
    Key("d_model", "hidden_size"),
    Key("num_layers", "num_hidden_layers"),
    Key("num_heads", "num_attention_heads"),
    Key("num_kv_heads", "num_key_value_heads", default=lambda tree: tree["num_attention_heads"]),
    Key("max_seq_len", "max_position_embeddings"),
    Key("norm_eps", "rms_norm_eps"),
    Only("attention_dropout", 0.0, is_written=True),
)
HEAD_DIM = Key("head_dim", "head_dim", default=_head_dim)
D_FF = Key("d_ff", "intermediate_size")
UNTIED = Key("tie_embeddings", "tie_word_embeddings", default=False)
TIED = Key("tie_embeddings", "tie_word_embeddings", default=True)
SILU = Only("hidden_act", "silu", is_written=True)
NO_BIAS = (Only("attention_bias", False, is_written=True), Only("mlp_bias", False))
NO_WINDOW = LayerKinds(all_global, is_written=False)


def nothing_ignored(config: ModelConfig, name: str) -> bool:
    """The default of `Family.ignores`: an unknown tensor is an error."""
    return False


@dataclass(frozen=True)
class Wrapper:
    """A published model of several parts, one of them the family's text model."""

    model_type: str
    key: str  # of the text model's config in its config.json
    prefix: str  # of the text model's tensors
    others: tuple[str, ...]  # prefixes of the other parts' tensors


def class_defaults(
    vocab_size: int, hidden_size: int, intermediate_size: int, num_hidden_layers: int, num_attention_heads: int,
    num_key_value_heads: int | None, max_position_embeddings: int, rms_norm_eps: float = 1e-6, **more: Any,
) -> Mapping[str, Any]:  # fmt: skip
    """The defaults of a published configuration class: the values of keys that a config.json does not have."""
    sizes = {
        "vocab_size": vocab_size, "hidden_size": hidden_size, "intermediate_size": intermediate_size,
        "num_hidden_layers": num_hidden_layers, "num_attention_heads": num_attention_heads,
        "num_key_value_heads": num_key_value_heads, "max_position_embeddings": max_position_embeddings,
        "rms_norm_eps": rms_norm_eps,
    }  # fmt: skip
    return sizes | more


@dataclass(frozen=True)
class Family:
    """One family. `ignores` says which published tensors the decoder does not use. An absent key has its value in
    `defaults`, of the published class; null is not absent (Mistral without `sliding_window` has one of 4,096)."""

    name: str  # of `ModelConfig.family`, and the published `model_type`
    architecture: str
    settings: tuple[Setting, ...]
    layout: Layout
    defaults: Mapping[str, Any] = field(default_factory=dict)
    ignores: Callable[[ModelConfig, str], bool] = nothing_ignored
    wrapper: Wrapper | None = None
    scorer: str | None = None  # the architecture that scores texts, if its name does not follow from the other's
    quantisation: str | None = None  # the `quant_method` of its published files that `block_scaled.py` reads
    where: str = "config.json"  # what its settings are in, for errors

    def exported(self, config: ModelConfig) -> ModelConfig:
        """The part of a model that the family's files can hold: without prediction modules, if they have no place. A
        drafter has files of its own. Of a model with a score what scores texts: without a head, which is not published,
        and without modules, which predict tokens."""
        if config.has_score:
            return config.trunk.model_copy(update={"has_score": True, "tie_embeddings": True})
        return config.target if self.layout.module else config.trunk

    def config_from(self, tree: Tree) -> ModelConfig:
        """Our config from a published one; raises `WeightsError` for missing keys and unsupported values."""
        require_forms(tree)
        tree = {**self.defaults, **tree}
        if (said := unsupported(tree.get("quantization_config") or {}, self.quantisation)) is not None:
            raise WeightsError(
                f"config.json: quantization_config with {said} is not supported for {self.name!r}; use the model in "
                "bfloat16"
            )
        fields: dict[str, Any] = {"family": self.name}
        missing: list[str] = []
        for setting in self.settings:
            try:
                fields |= setting.read(tree)
            except MissingKey as error:
                missing.append(str(error))
            except KeyError as error:  # a default that is made from another key
                missing.append(str(error.args[0]))
        if missing:
            raise WeightsError(f"{self.where}: missing {', '.join(dict.fromkeys(missing))}")
        fields |= _read_score(tree)
        return validate(ModelConfig, _nested(fields), where=self.where)

    def config_to(self, config: ModelConfig) -> dict[str, Any]:
        """The published form; raises `WeightsError` naming the fields that it cannot express."""
        tree = {"architectures": [self.architecture], "model_type": self.name, **self.keys_of(config)}
        if config.has_score:
            scorer = self.scorer or self.architecture.replace(GENERATES, SCORES)
            tree |= {"architectures": [scorer], **ONE_LABEL}
        if wrong := differences(config, self.config_from(tree)):
            raise WeightsError(
                f"family {self.name!r} has no config key for {', '.join(wrong)}; set model.family to one that has"
            )
        return tree

    def keys_of(self, config: ModelConfig) -> dict[str, Any]:
        """What the settings write of a model, which may not be all of it: `differences` tells."""
        self._require_sections(config)
        tree: dict[str, Any] = {}
        for setting in self.settings:
            tree |= setting.write(config)
        return tree

    def _require_sections(self, config: ModelConfig) -> None:
        fields = {setting.ours.split(".")[0] for setting in self.settings if isinstance(setting, Key)}
        for section in ("moe", "mla"):
            if (getattr(config, section) is not None) != (section in fields):
                verb = "needs" if section in fields else "has no"
                raise WeightsError(f"family {self.name!r} {verb} model.{section}; set model.family to one that fits")


def _read_score(tree: Tree) -> dict[str, Any]:
    """What a published model that scores texts has beside its trunk."""
    architecture = next(iter(tree.get("architectures") or ()), "")
    if not architecture.endswith(SCORES):
        return {}
    labels = tree.get("id2label") or range(tree.get("num_labels", 2))
    if len(labels) != 1:
        raise WeightsError(f"config.json: {architecture} with {len(labels)} labels; a score is one with a single label")
    return {"has_score": True, "tie_embeddings": True}


def differences(config: ModelConfig, other: ModelConfig) -> list[str]:
    """The fields in which two models differ, with the first one's values."""
    ours, theirs = _compared(config), _compared(other)
    names = [name for name in ours | theirs if not _is_same(ours.get(name), theirs.get(name))]
    return [f"{name}={ours.get(name)!r}" for name in names]


def _compared(config: ModelConfig) -> dict[str, Any]:
    fields = _flat(config.model_dump(), "")
    fields["layer_pattern"] = shortest_pattern([config.kind(layer) for layer in range(config.num_layers)])
    return {name: value for name, value in fields.items() if name not in NOT_OF_THE_MODEL}


def _flat(tree: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return flat


def _is_same(left: Any, right: Any) -> bool:
    if isinstance(left, float) and isinstance(right, float):
        return math.isclose(left, right, rel_tol=1e-9)
    return left == right


def _nested(fields: Mapping[str, Any]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for name, value in fields.items():
        *parents, leaf = name.split(".")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return tree


def ignore(pattern: str) -> Callable[[ModelConfig, str], bool]:
    """Ignores tensors whose full name matches a regular expression."""
    compiled = re.compile(pattern)
    return lambda config, name: compiled.fullmatch(name) is not None
