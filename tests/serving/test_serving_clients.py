"""Other clients of OpenAI's API. They are not part of this project: `LIFECYCLE_CLIENTS_PYTHON` names a Python with
litellm and langchain-openai (`uv pip install litellm langchain-openai`)."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from serving_server import Running

from lifecycle.testing.waiting import LIMIT_S

PYTHON = os.environ.get("LIFECYCLE_CLIENTS_PYTHON")
TEXT = "Hello \u2603"


@pytest.mark.long
@pytest.mark.skipif(PYTHON is None, reason="LIFECYCLE_CLIENTS_PYTHON does not name a Python with the clients")
def test_litellm_and_langchain_get_what_openai_s_client_gets(server: Running) -> None:
    script = Path(__file__).parent / "other_clients.py"
    command = [str(PYTHON), str(script), f"{server.base}/v1", "production", TEXT]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    output = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, env=env)
    assert output.returncode == 0, output.stderr[-3000:]
    found = json.loads(output.stdout.splitlines()[-1])
    client = server.client
    chat = client.chat.completions.create(
        model="production", messages=[{"role": "user", "content": TEXT}], temperature=0, max_tokens=30
    )
    completion = client.completions.create(model="production", prompt=TEXT, temperature=0, max_tokens=30)
    vector = client.embeddings.create(model="production", input=TEXT).data[0].embedding
    for name, value in found.items():
        if "embedding" in name:
            np.testing.assert_allclose(value, vector, atol=1e-6, err_msg=name)
        elif "ranks" in name:
            assert value[0] == 1, name
        else:
            expected = completion.choices[0].text if "completion" in name else chat.choices[0].message.content
            assert value == expected, name
    assert len(found) == 12
