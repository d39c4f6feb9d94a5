"""The CUDA plugin that is there for its compiler: JAX says nothing of it where no GPU is, and all where one may be."""

import logging
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from lifecycle.core import cuda_plugin
from lifecycle.core.cuda_plugin import LOGGER, MODULE, has_gpu

LOGGED = "Jax plugin configuration error: Exception when calling %s.initialize()"  # as JAX writes it
JAX_STARTS = "import jax, lifecycle; print(jax.default_backend())"
AS_WITH_GPU = "from lifecycle.core import cuda_plugin; cuda_plugin.has_gpu = lambda: True; "
with_plugin = [
    pytest.mark.aot,
    pytest.mark.skipif(find_spec("jax_cuda13_plugin") is None, reason="needs the extra gpu-compiler"),
    pytest.mark.skipif(has_gpu(), reason="there is a GPU"),
]


@pytest.mark.parametrize(
    ("gpu", "platforms", "plugin", "is_shown"),
    [
        (False, "", f"{MODULE}13", False),
        (True, "", f"{MODULE}13", True),
        (False, "cuda", f"{MODULE}13", True),
        (False, "", "jax_plugins.other", True),
    ],
)
def test_only_the_failure_that_nobody_can_mend_is_left_out(
    gpu: bool, platforms: str, plugin: str, is_shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda_plugin, "has_gpu", lambda: gpu)
    monkeypatch.setenv("JAX_PLATFORMS", platforms)
    record = logging.LogRecord(LOGGER, logging.ERROR, __file__, 1, LOGGED, (plugin,), None)
    assert bool(logging.getLogger(LOGGER).filter(record)) == is_shown


@pytest.mark.parametrize(("names", "expected"), [((), False), (("null", "vfio"), False), (("nvidia0",), True)])
def test_a_gpu_is_known_by_its_drivers_files(names: tuple[str, ...], expected: bool, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert has_gpu(tmp_path) == expected


@pytest.mark.parametrize(
    ("before", "is_shown"),
    [pytest.param("", False, marks=with_plugin), pytest.param(AS_WITH_GPU, True, marks=with_plugin)],
)
def test_jax_starts_without_a_stack_where_no_gpu_is(before: str, is_shown: bool) -> None:
    """Also where JAX is imported before this package."""
    code = before + JAX_STARTS
    environment = {name: value for name, value in os.environ.items() if name != "JAX_PLATFORMS"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ("Traceback" in done.stderr) == ("jax_plugins" in done.stderr) == is_shown
    assert done.stdout == "cpu\n"
