"""The page of kernels' floors: figures by hand, and the kept page is what the script makes."""

import pytest

from benchmarks.kernels import attention, page
from tests.planning.shipped import ROOT


@pytest.mark.parametrize(("chip", "rows", "peak", "filled"), [("v5p", 2, 262_144, 1.0), ("v6e", 1, 524_288, 0.5)])
def test_attentions_floor_is_its_products_over_half_of_the_square(
    chip: str, rows: int, peak: int, filled: float
) -> None:
    forward, backward = (attention(name, chip, rows) for name in ("flash_fwd", "flash_bwd"))
    flops = 2 * 2 * rows * 32 * 128 * 8192**2 / 2  # q k', p v
    assert forward.flops == flops and backward.flops == 2.5 * flops
    assert forward.floor == flops / peak and forward.units_cycles == forward.floor / filled
    tiles = rows * 32 * (16 * 17 / 2) * 512**2  # with the wasted halves on the diagonal
    assert backward.bundles > 5 * 2 * tiles * 128 / peak / filled  # no schedule is faster than the matrix units


def test_the_kept_page_is_what_the_script_makes() -> None:
    assert (ROOT / "docs" / "kernels.md").read_text(encoding="utf-8") == page()
