"""What xpk asks a cluster for, by topology: `tests/golden/xpk.json`, from its dry runs.

Run it where xpk is installed, which needs an environment of its own, and from a folder that may be written:

    uv venv xpk && VIRTUAL_ENV=xpk uv pip install xpk==1.16.0 && xpk/bin/python tests/golden/make_xpk_golden.py
"""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import yaml

# our topology -> xpk's words for it
WORKLOADS = {
    "v4:2x2x2": ["--tpu-type=v4-16"],
    "v4:4x4x4": ["--tpu-type=v4-128"],
    "v5e:2x4": ["--tpu-type=v5litepod-8"],
    "v5e:16x16": ["--tpu-type=v5litepod-256"],
    "v5p:2x2x1": ["--tpu-type=v5p-8"],
    "v5p:4x4x4": ["--tpu-type=v5p-128"],
    "v5p:4x4x4*2": ["--tpu-type=v5p-128", "--num-slices=2"],
    "v5p:4x4x8": ["--tpu-type=v5p-256"],
    "v6e:1x1": ["--tpu-type=v6e-1"],
    "v6e:2x2": ["--tpu-type=v6e-4"],
    "v6e:2x4": ["--tpu-type=v6e-8"],
    "v6e:16x16*4": ["--tpu-type=v6e-256", "--num-slices=4"],
    "tpu7x:4x4x4": ["--tpu-type=tpu7x-4x4x4"],
    "h100:8": ["--device-type=h100-80gb-8", "--num-nodes=1"],
    "h100:16": ["--device-type=h100-80gb-8", "--num-nodes=2"],
    "h200:32": ["--device-type=h200-141gb-8", "--num-nodes=4"],
}
COMMON = ["--project=p", "--zone=us-central1-a", "--cluster=c", "--workload=w", "--command=true", "--docker-image=i"]


def dry_run(words: list[str]) -> dict:
    """The JobSet that xpk would apply."""
    command = [sys.executable, "-m", "xpk.main", "workload", "create", "--dry-run", "--skip-validation"]
    printed = subprocess.run([*command, *COMMON, *words], capture_output=True, text=True, check=True).stdout
    return yaml.safe_load(printed[printed.index("apiVersion: jobset") :].split("\n[XPK]")[0])


def facts(manifest: dict) -> dict:
    """What of it is comparable: nodes, devices and pods, and what happens when one fails."""
    (replicated,) = manifest["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    return {
        "replicas": replicated["replicas"],
        **{key: job[key] for key in ("parallelism", "completions", "backoffLimit")},
        "restartPolicy": pod["restartPolicy"],
        "hostNetwork": pod.get("hostNetwork", False),
        "nodeSelector": pod.get("nodeSelector"),
        "tolerations": pod["tolerations"],
        "limits": [container["resources"]["limits"] for container in pod["containers"]],
        "annotations": manifest["metadata"].get("annotations"),
    }


if __name__ == "__main__":
    golden = {"xpk": importlib.metadata.version("xpk")}
    golden |= {topology: facts(dry_run(words)) for topology, words in WORKLOADS.items()}
    path = Path(__file__).parent / "xpk.json"
    path.write_text(json.dumps(golden, indent=1) + "\n", encoding="utf-8")
