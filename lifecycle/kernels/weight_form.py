"""What a weight that is no plain array is to the layer that has it."""

from typing import Any, Self


class WeightForm:
    """A weight in a form of its own: products take it as it is (`kernels/linear.py`)."""

    def __getitem__(self, key: Any) -> Self:
        """Itself for `[...]`, as a layer reads a parameter."""
        assert key is ...
        return self
