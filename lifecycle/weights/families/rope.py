"""RoPE in a published config: `rope_theta` and `rope_scaling`, or newer files' `rope_parameters`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifecycle.model.config import ModelConfig, RopeScaling
from lifecycle.weights.families.settings import Fields, Tree, WeightsError

ORIGINAL = "original_max_position_embeddings"
SAME_NAME = ("factor", "low_freq_factor", "high_freq_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim",
             "truncate")  # fmt: skip
USED = {
    "linear": {"factor"},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", ORIGINAL},
    "yarn": {"factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate", ORIGINAL},
}
ELSEWHERE = {"rope_type", "type", "rope_theta"}
# Other keys that a file may have, and the value that changes nothing.
WITHOUT_EFFECT = {"attention_factor": None, "partial_rotary_factor": 1.0}


@dataclass(frozen=True)
class Rope:
    """`rope_theta` and its scaling; `local_theta_key` names the local layers' own theta in older files; newer files
    nest one set of parameters per layer type."""

    default_theta: float = 10_000.0
    local_theta_key: str | None = None
    default_local_theta: float = 10_000.0
    default_scaling: Mapping[str, Any] | None = None  # of a file that says nothing about scaling; null says that none

    def read(self, tree: Tree) -> Fields:
        """Our RoPE fields from a published config."""
        parameters = tree.get("rope_parameters") or {}
        if self.local_theta_key is None:
            return self._read_one(tree, parameters)
        fields = self._read_one(tree, parameters.get("full_attention") or {})
        local = parameters.get("sliding_attention") or {}
        if local.get("rope_type", "default") != "default":
            raise WeightsError(
                f"config.json: rope_type={local['rope_type']!r} of local layers is not supported; they are not scaled"
            )
        old = tree.get(self.local_theta_key, self.default_local_theta)
        return fields | {"local_rope_theta": local.get("rope_theta", old)}

    def _read_one(self, tree: Tree, parameters: Tree) -> Fields:
        _refuse_partial(tree)
        says = "rope_scaling" in tree or "rope_parameters" in tree
        scaling = (tree.get("rope_scaling") or parameters) if says else self.default_scaling or {}
        kind = scaling.get("rope_type", scaling.get("type", "default"))
        theta = parameters.get("rope_theta", tree.get("rope_theta") or self.default_theta)
        return {"rope_theta": theta, "rope_scaling": _read_scaling(kind, scaling, tree)}

    def write(self, config: ModelConfig) -> dict[str, Any]:
        """The published keys of our RoPE fields."""
        keys: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_scaling": None}
        if config.rope_scaling is not None:
            keys["rope_scaling"] = _write_scaling(config.rope_scaling)
        return keys | ({self.local_theta_key: config.local_rope_theta} if self.local_theta_key else {})


def _read_scaling(kind: str, scaling: Tree, tree: Tree) -> dict[str, Any] | None:
    used = USED.get(kind, set())
    invalid = [f"{key}={scaling[key]!r}" for key in scaling if not _is_computed(key, scaling[key], used)]
    if kind not in ("default", *USED) or invalid:
        known = ", ".join(["default", *USED])
        also = f" with {', '.join(invalid)}" if invalid else ""
        raise WeightsError(f"config.json: rope scaling {kind!r}{also} is not supported; known kinds: {known}")
    if kind == "default":
        return None
    fields = {key: scaling[key] for key in SAME_NAME if key in used and scaling.get(key) is not None}
    if ORIGINAL in used:
        fields["original_max_seq_len"] = scaling.get(ORIGINAL) or tree["max_position_embeddings"]
    return {"kind": kind, **fields}


def _is_computed(key: str, value: Any, used: set[str]) -> bool:
    return key in used | ELSEWHERE or (key in WITHOUT_EFFECT and value == WITHOUT_EFFECT[key])


def _write_scaling(scaling: RopeScaling) -> dict[str, Any]:
    used = USED[scaling.kind]
    keys: dict[str, Any] = {"rope_type": scaling.kind}
    keys |= {key: getattr(scaling, key) for key in SAME_NAME if key in used and getattr(scaling, key) is not None}
    return keys | ({ORIGINAL: scaling.original_max_seq_len} if ORIGINAL in used else {})


def _refuse_partial(tree: Mapping[str, Any]) -> None:
    share = tree.get("partial_rotary_factor", 1.0)
    if share not in (None, 1.0):
        raise WeightsError(f"config.json: partial_rotary_factor={share}; only 1 is supported")
