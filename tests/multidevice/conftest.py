"""What tests of whole models on meshes share."""

import pytest


@pytest.fixture
def layers_in_a_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """Layers are a loop, as on accelerators; a CPU's unrolled ones take twice as long to compile."""
    monkeypatch.setattr("lifecycle.model.decoder.CPU_UNROLLED_LAYERS", 0)
