"""One environment for the whole suite: the CPU, as eight virtual devices. JAX reads it when it is first imported.

LLVM's optimiser is off: on the suite's tiny arrays it saves nothing and takes half of all CPU time (a training run of
10 steps: 6.7 CPU seconds with it, 3.1 without). XLA's own passes, the partitioner among them, are those of any run.
"""

import os

from hypothesis import settings

FLAGS = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FLAGS}".strip()

settings.register_profile("suite", deadline=None)  # wall time on a busy machine says nothing of the code
settings.load_profile("suite")

pytest_plugins = ("tests.artifacts",)
