"""What a cluster makes of a manifest's container: Kubernetes' expansion of `$(NAME)`, and the process it starts."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

REPORT = "import json, os, sys; print(json.dumps([sys.argv[1:], dict(os.environ)]))"


def expanded(text: str, variables: dict[str, str]) -> str:
    """A container's `command`, `args` or `env` value after expansion: `$$` is `$`, `$(NAME)` the value of a known NAME.
    Source: the API reference of v1 Container, fields `command` and `args`."""
    out, rest = "", text
    while rest:
        before, dollar, after = rest.partition("$")
        out += before
        if after.startswith("$"):
            out, rest = out + "$", after[1:]
        elif after.startswith("(") and ")" in after:
            name, _, rest = after[1:].partition(")")
            out += variables.get(name, f"$({name})")
        else:
            out, rest = out + dollar, after
    return out


def pod_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]


def process(manifest: dict[str, Any], job_index: int, pod_index: int) -> tuple[list[str], dict[str, str]]:
    """Returns (the command, the variables) with which a kubelet would start the container of one pod."""
    (container,) = pod_spec(manifest)["containers"]
    variables = {"JOB_COMPLETION_INDEX": str(pod_index)}
    labels = {"metadata.labels['jobset.sigs.k8s.io/job-index']": str(job_index)}
    for variable in container["env"]:
        given = variable.get("value")
        value = labels[variable["valueFrom"]["fieldRef"]["fieldPath"]] if given is None else expanded(given, variables)
        variables[variable["name"]] = value
    return [expanded(word, variables) for word in (*container["command"], *container["args"])], variables


def started(manifest: dict[str, Any], job_index: int, pod_index: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Returns (the arguments, the environment) that the program `lifecycle` gets in one pod."""
    program = folder / "lifecycle"
    program.write_text(f"#!{sys.executable}\n{REPORT}\n")
    program.chmod(0o755)
    words, variables = process(manifest, job_index, pod_index)
    path = {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=variables | path, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))
