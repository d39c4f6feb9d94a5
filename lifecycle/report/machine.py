"""The machine and the libraries of a run, as far as the operating system reports them."""

import os
import platform
from importlib.metadata import version
from pathlib import Path

from lifecycle.report.format import size

LIBRARIES = ("jax", "jaxlib", "optax", "orbax-checkpoint", "grain", "daft", "sentencepiece")
CPU_FACTS = Path("/proc/cpuinfo")


def machine_facts() -> dict[str, str]:
    """CPU, cores, memory, operating system, Python and the versions of the libraries that affect the numbers."""
    facts = {
        "CPU": cpu_name(),
        "cores": str(os.cpu_count()),
        "memory": size(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        "system": f"{platform.system()} {platform.release()}",
        "Python": platform.python_version(),
    }
    return facts | {name: version(name) for name in LIBRARIES}


def cpu_name() -> str:
    """The processor's name on Linux, its architecture elsewhere."""
    if CPU_FACTS.is_file():
        for line in CPU_FACTS.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
