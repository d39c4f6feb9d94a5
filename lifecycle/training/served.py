"""Quantisation-aware training: steps see the weights as a format of inference rounds them.

A step computes with the values that inference would give the weights (`model/weight_formats.py`), and the gradient
there moves the plain ones, as if nothing were rounded: the straight-through estimator (Bengio et al. 2013, "Estimating
or Propagating Gradients Through Stochastic Neurons"; of weights as here: Jacob et al. 2018, "Quantization and Training
of Neural Networks for Efficient Integer-Arithmetic-Only Inference", section 3). So nothing is differentiated through a
rounding. Values that are cut to the format's range have their gradient, too: scales follow from the values in each
step, so a cut value is among the largest of its group, and without a gradient it would stay there.

What must hold: whole arrays are rounded, once a step and outside of its `shard_map`, so micro-batches,
rematerialisation, objective and mesh decide nothing.
"""

from collections.abc import Callable

from lifecycle.model.config import ModelConfig
from lifecycle.model.params import Params
from lifecycle.model.weight_formats import as_served
from lifecycle.parallel.mesh import AnyMesh, computing_on
from lifecycle.training.config import TrainConfig

type Served = Callable[[Params], Params]  # from a state's parameters to those that its step computes with


def as_they_are(params: Params) -> Params:
    """The parameters."""
    return params


def served_by(model: ModelConfig, train: TrainConfig, mesh: AnyMesh) -> Served:
    """How a stage's steps on a mesh see their parameters; as they are, unless the stage trains them for a format."""
    if (weights := train.weights) is None:
        return as_they_are

    def served(params: Params) -> Params:
        with computing_on(mesh):
            return as_served(model, params, weights)

    return served
