"""Lowering contracts: a train step's shardings and collectives, read from its trace.

They take a second per model, without a device or compiler. The step's collectives are explicit in the model's code, so
its trace has all of them: how often each kind runs over which axes, and with how many bytes per device. The lines also
show how every parameter is sharded and the shape of each device's shard of every named activation. They are committed
for each shipped config; a changed line deserves a look.

All configs are traced for one kind of chip, a v5p, named in the first line. Shardings and collectives do not depend on
it, but the attention kernel does, and so does the layout of its inputs and outputs: on GPUs they differ.
"""

import math
from collections import Counter
from collections.abc import Iterator
from typing import Any

import jax
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from lifecycle.model.config import ModelConfig
from lifecycle.model.params import abstract_params
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.rl.config import RolloutConfig
from lifecycle.rl.lowering import example_row
from lifecycle.training.config import TrainConfig
from lifecycle.training.lowering import trace_train_step
from lifecycle.training.state import param_specs

COLLECTIVES = ("all_gather", "reduce_scatter", "psum", "pmax", "all_to_all", "ragged_all_to_all", "ppermute")
V5P = AbstractDevice(device_kind="TPU v5", num_cores=2, platform="tpu")


def contract(model: ModelConfig, train: TrainConfig, mesh: MeshConfig) -> list[str]:
    """The lines for one config, traced for TPUs."""
    sizes = {axis: getattr(mesh, axis) for axis in AXES}
    automatic = (AxisType.Auto,) * len(AXES)  # as in a mesh of devices: the partitioner shards the optimizer
    devices = AbstractMesh(tuple(sizes.values()), AXES, automatic, abstract_device=V5P)
    row = example_row(train) if isinstance(train, RolloutConfig) else None
    traced = trace_train_step(model, train, devices, row=row).jaxpr.jaxpr
    return [
        f"traced for {V5P.device_kind}, whatever the run's devices",
        "parameter | whole | cut | a device's part",
        *_parameters(model, sizes),
        "activation | a device's part",
        *sorted({line for equation, _ in _equations(traced, 1) for line in _named(equation)}),
        "collective | axes | times a step | bytes a device and step",
        *_collectives(traced),
    ]


def _parameters(model: ModelConfig, sizes: dict[str, int]) -> Iterator[str]:
    specs = dict(jax.tree_util.tree_leaves_with_path(param_specs(model)))
    for path, leaf in jax.tree_util.tree_leaves_with_path(abstract_params(model)):
        entries = [entry if isinstance(entry, tuple) else (entry,) for entry in specs[path]]
        cut = [tuple(axis for axis in entry if axis is not None and sizes[axis] > 1) for entry in entries]
        cut += [()] * (leaf.ndim - len(cut))
        part = [size // math.prod(sizes[axis] for axis in axes) for size, axes in zip(leaf.shape, cut, strict=True)]
        words = ["+".join(axes) or "-" for axes in cut]
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        yield f"{name} | {_shape(leaf.shape)} | {' '.join(words)} | {_shape(part)}"


def _equations(jaxpr: Any, times: int) -> Iterator[tuple[Any, int]]:
    """Every equation with how often it runs; the body of a loop of unknown length counts once."""
    for equation in jaxpr.eqns:
        yield equation, times
        inner = times * equation.params["length"] if equation.primitive.name == "scan" else times
        for value in equation.params.values():
            for part in value if isinstance(value, tuple | list) else (value,):
                part = getattr(part, "jaxpr", part)
                if hasattr(part, "eqns"):
                    yield from _equations(part, inner)


def _named(equation: Any) -> Iterator[str]:
    if equation.primitive.name == "name":
        value = equation.outvars[0].aval
        yield f"{equation.params['name']} | {value.dtype.name} {_shape(value.shape)}"


def _collectives(jaxpr: Any) -> Iterator[str]:
    times: Counter[tuple[str, str]] = Counter()
    moved: Counter[tuple[str, str]] = Counter()
    for equation, number in _equations(jaxpr, 1):
        name = equation.primitive.name
        if name in COLLECTIVES:
            axes = equation.params.get("axes", equation.params.get("axis_name"))
            key = name, "+".join(axes) if isinstance(axes, tuple) else str(axes)
            arrays = equation.outvars if name == "all_gather" else equation.invars
            arrays = arrays[:1] if name == "ragged_all_to_all" else arrays  # the rest: output, offsets and sizes
            times[key] += number
            moved[key] += number * sum(var.aval.size * var.aval.dtype.itemsize for var in arrays)
    for key in sorted(times):
        yield f"{key[0]} | {key[1]} | {times[key]} | {moved[key]}"


def _shape(sizes: Any) -> str:
    return "x".join(map(str, sizes)) or "scalar"
