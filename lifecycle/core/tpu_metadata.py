"""What a Cloud TPU VM's metadata server tells of the slice; no other machine is asked.

The server answers under a link-local name. The path and the header are those of Google's documentation of VM metadata;
the attributes `agent-worker-number`, `worker-network-endpoints` and `tpu-env` those that JAX reads too.
"""

import os
import urllib.error
import urllib.request
from functools import cache
from pathlib import Path

from lifecycle.core.config import ConfigError

GOOGLE = "0x1ae0"  # the vendor's number on the PCI bus, also of its network cards
TPUS = {"0x0027", "0x0056", "0x005e", "0x0062", "0x0063", "0x006f", "0x0076"}  # v2 and v3, ..., v4, v5p, v5e, v6e, 7x
PCI = Path("/sys/bus/pci/devices")
ATTRIBUTES = "computeMetadata/v1/instance/attributes"
LIMIT_S = 2.0  # the server is on the same host
TRIES = 3


def has_tpu(devices: Path = PCI) -> bool:
    """Whether a TPU is on this machine's PCI bus."""
    return any(_text(device / "vendor") == GOOGLE and _text(device / "device") in TPUS for device in devices.glob("*"))


@cache
def ask_tpu_metadata(name: str) -> str | None:
    """An attribute of this VM, or None: it has no such attribute, or this machine has no TPU."""
    if not has_tpu():
        return None
    return fetch_attribute(os.environ.get("GCE_METADATA_IP", "metadata.google.internal"), name)


def fetch_attribute(server: str, name: str) -> str | None:
    """The attribute that the server has; None if it has none. Raises `ConfigError` if it does not answer."""
    request = urllib.request.Request(f"http://{server}/{ATTRIBUTES}/{name}", headers={"Metadata-Flavor": "Google"})
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy: it is on this host
    problem = ""
    for _ in range(TRIES):
        try:
            with opener.open(request, timeout=LIMIT_S) as answer:
                return answer.read().decode()
        except urllib.error.HTTPError as error:
            if error.code < 500:
                return None
            problem = str(error)
        except OSError as error:
            problem = str(error)
    raise ConfigError(
        f"this machine has a TPU, but its metadata server {server} does not answer ({problem}): set "
        "LIFECYCLE_DISTRIBUTED=off for a process that works alone, or LIFECYCLE_COORDINATOR and its like"
    )


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""
