"""A bundle's programs as StableHLO: without this package, they give the engine's tokens."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from lifecycle.cli import export_stablehlo as exporting
from lifecycle.cli.export import export
from lifecycle.core.config import ConfigError
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.exported import PLATFORMS, export_step
from lifecycle.inference.generate import generate
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.counts import num_params
from lifecycle.testing.families import MODELS
from tests.golden.gguf_models import MODELS as TINY
from tests.golden.gguf_models import PROMPT, write_bundle

WITHOUT = (
    "import runpy, sys; sys.modules['lifecycle'] = None; sys.argv = sys.argv[1:]; "
    "runpy.run_path(sys.argv[0], run_name='__main__')"
)


@pytest.mark.slow
def test_the_programs_run_without_this_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gemma 2: windows of 7, so that the cache's ring turns; the prompt in chunks of 8, the last one padded."""
    monkeypatch.setattr(exporting, "PREFILL_SIZE", 8)
    bundle, out = write_bundle("gemma2", tmp_path / "gemma"), tmp_path / "out.stablehlo"
    export(bundle, str(out))
    command = [sys.executable, "-c", WITHOUT, str(out / "generate.py"), *map(str, PROMPT)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    greedy = SamplingParams(temperature=0.0, max_tokens=54)
    (expected,) = generate(load_bundle(bundle), [PROMPT], greedy, 1)
    assert [int(word) for word in printed.split()] == expected.token_ids and len(expected.token_ids) > 20
    facts = json.loads((out / "program.json").read_text())
    assert facts["length"] == 64 and facts["prefill_size"] == 8 and facts["ends"] == [2]
    weights = load_file(out / "model.safetensors")
    assert weights["blocks.1.attention.q"].shape == (32, 32) and len(weights) == 2 + 2 * 11
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".tmp")]


ALWAYS = ("llama", "gpt_oss", "deepseek_v3")  # the others run with `slow`


@pytest.mark.parametrize("name", [n if n in ALWAYS else pytest.param(n, marks=pytest.mark.slow) for n in MODELS])
def test_every_family_is_exported_for_every_platform(name: str) -> None:
    exported = export_step(MODELS[name].trunk, 1, 32, 1)
    assert exported.platforms == PLATFORMS and exported.calling_convention_version >= 9
    assert exported.out_avals[0].shape == (1, MODELS[name].vocab_size)


def test_what_is_not_written_is_said(tmp_path: Path) -> None:
    bundle = write_bundle("llama", tmp_path / "llama")
    (tmp_path / "there.stablehlo").mkdir()
    with pytest.raises(ConfigError, match=r"there\.stablehlo already exists"):
        export(bundle, str(tmp_path / "there.stablehlo"))
    with pytest.raises(ConfigError, match=r"--encoding q8_0: of StableHLO's weights f32 and bf16 are written"):
        export(bundle, str(tmp_path / "out.stablehlo"), encoding="q8_0")
    export(bundle, str(tmp_path / "half.stablehlo"), encoding="bf16")
    weights = load_file(tmp_path / "half.stablehlo/model.safetensors")
    assert weights["blocks.1.attention.q"].dtype == "bfloat16"  # norms stay in float32
    assert sum(array.size for array in weights.values()) == num_params(TINY["llama"])
    assert np.isfinite(weights["embed"].astype(np.float32)).all()
