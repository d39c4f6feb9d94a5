"""Matrices rounded to 4 bits such that their outputs change least: GPTQ (Frantar et al. 2022, algorithm 1).

Rows of a matrix are rounded one after the other, those with the largest inputs first; the error of each is spread over
the rows that are still to come, as the inverse Hessian says. A group's scale is chosen before, for the least error of
its values weighted by their inputs: it does not depend on the order. What must hold: the result is on the grid of
`kernels/group_scaled.py`, which keeps its values.
"""

import jax
import jax.numpy as jnp
import numpy as np
from scipy.linalg import cho_solve, cholesky

from lifecycle.kernels.group_scaled import HIGHEST, LOWEST, group_scales, group_size

BITS = 4
DAMPING = 0.01  # of the Hessian's mean diagonal, added to it (section 3, step 3)
BLOCK = 64  # rows whose errors are spread over the rest at once

_scales = jax.jit(group_scales, static_argnums=1)


def gptq(weight: np.ndarray, hessian: np.ndarray) -> np.ndarray:
    """A matrix `[D, F]` on the grid of int4, given the Hessian `[D, D]` of its inputs; both float32.

    Raises `ValueError` for a Hessian that is not finite.
    """
    diagonal = np.diag(hessian)
    if not np.isfinite(diagonal).all():
        raise ValueError("the calibration rows give a layer inputs that are not finite; check the model on them")
    order = np.argsort(-diagonal, kind="stable")
    factor = _factor(hessian[np.ix_(order, order)])
    scale = _row_scales(weight, diagonal)[order]
    left, out = weight[order], np.empty_like(weight)
    for start in range(0, len(weight), BLOCK):
        stop = min(start + BLOCK, len(weight))
        errors = np.empty_like(left[start:stop])
        for row in range(start, stop):
            out[row] = np.clip(np.rint(left[row] / scale[row]), LOWEST[BITS], HIGHEST[BITS]) * scale[row]
            errors[row - start] = (left[row] - out[row]) / factor[row, row]
            left[row + 1 : stop] -= np.outer(factor[row, row + 1 : stop], errors[row - start])
        left[stop:] -= factor[start:stop, stop:].T @ errors
    return out[np.argsort(order)]


def _factor(hessian: np.ndarray) -> np.ndarray:
    """The upper Cholesky factor of the damped Hessian's inverse."""
    damped = hessian.astype(np.float64)
    mean = np.diag(damped).mean()
    damped[np.diag_indices_from(damped)] += DAMPING * mean if mean > 0 else 1.0
    inverse = cho_solve((cholesky(damped, lower=True), True), np.eye(len(damped)))
    return cholesky(inverse, lower=False).astype(np.float32)


def _row_scales(weight: np.ndarray, diagonal: np.ndarray) -> np.ndarray:
    """Each value's scale, `[D, F]`."""
    size = group_size(len(weight))
    importance = (diagonal + DAMPING * diagonal.mean() + np.finfo(np.float32).tiny).reshape(-1, size, 1)
    scale = _scales(weight.reshape(-1, size, weight.shape[1]), BITS, jnp.asarray(importance, jnp.float32))
    return np.repeat(np.asarray(scale)[:, 0], size, axis=0)
