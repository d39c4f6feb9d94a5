"""Requests that schemathesis draws from the OpenAPI document of a tiny model's server: valid, and wrong in one way.

    uv run python benchmarks/fuzz.py ST [--examples 1000] [--seed 0]

`ST` is schemathesis's program, which is not part of this project: `uv venv DIR`, `uv pip install --python
DIR/bin/python schemathesis`, then `DIR/bin/st`. Each operation gets every boundary value of its fields, and up to
`--examples` requests at random; most with the served model's name and a short answer. Fails if an answer has a status
of 500 and above, or one that the document does not name, if a body or a header is not as the document says, if a
request is accepted that the document forbids, or if the server does not answer at the end. It is not checked that all
requests which the schema allows are accepted: they may exceed the context, or have two fields that do not fit.
"""

import argparse
import os
import subprocess
import tempfile
import urllib.request
from pathlib import Path

from lifecycle.testing.server import NAME, served

HOOKS = f'''
import schemathesis

LENGTHS = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@schemathesis.hook
def map_body(context, body):
    """Most drawn bodies would fail by their model or their length alone."""
    if isinstance(body, dict):
        if isinstance(body.get("model"), str):
            body["model"] = "{NAME}"
        for name in LENGTHS:
            if isinstance(body.get(name), int) and body[name] > 20 and body[name] % 4:
                body[name] %= 20
    return body
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("st", type=Path)
    parser.add_argument("--examples", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, served("max_seq_len=256") as (base, process):
        hooks = Path(folder) / "hooks.py"
        hooks.write_text(HOOKS)
        command = [str(options.st.absolute()), "run", f"{base}/openapi.json", "--phases", "coverage,fuzzing"]
        command += ["--checks", "all", "--exclude-checks", "positive_data_acceptance", "--request-timeout", "120"]
        command += ["--max-examples", str(options.examples), "--seed", str(options.seed)]
        command += ["--continue-on-failure", "--no-shrink", "--suppress-health-check", "all"]
        env = os.environ | {"SCHEMATHESIS_HOOKS": str(hooks)}
        status = subprocess.run(command, cwd=folder, env=env, check=False).returncode
        with urllib.request.urlopen(f"{base}/metrics") as answer:
            lines = answer.read().decode().splitlines()
        print(*(line for line in lines if line.startswith("lifecycle_requests_total")), sep="\n")
        assert process.poll() is None, "the server is alive"
    raise SystemExit(status)


if __name__ == "__main__":
    main()
