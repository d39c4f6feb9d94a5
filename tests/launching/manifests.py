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


def started(manifest: dict[str, Any], job_index: int, pod_index: int, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Returns (the arguments, the environment) of the program `lifecycle` in one pod, started as a kubelet would."""
    (container,) = pod_spec(manifest)["containers"]
    program = folder / "lifecycle"
    program.write_text(f"#!{sys.executable}\n{REPORT}\n")
    program.chmod(0o755)
    variables = {"JOB_COMPLETION_INDEX": str(pod_index), "PATH": f"{folder}:{os.environ['PATH']}"}
    labels = {"metadata.labels['jobset.sigs.k8s.io/job-index']": str(job_index)}
    for variable in container["env"]:
        given = variable.get("value")
        value = labels[variable["valueFrom"]["fieldRef"]["fieldPath"]] if given is None else expanded(given, variables)
        variables[variable["name"]] = value
    words = [expanded(word, variables) for word in (*container["command"], *container["args"])]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout))
