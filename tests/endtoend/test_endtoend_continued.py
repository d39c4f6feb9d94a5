"""One stable run, continued twice from its checkpoints: with a decay and to a longer stable run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lifecycle.core.run import open_run

pytestmark = pytest.mark.long


def stage(steps: int, decay_share: float, **settings: Any) -> dict[str, Any]:
    schedule = {"warmup_steps": 3, "decay_share": decay_share}
    optimizer = {"name": "muon", "learning_rate": 0.01, "average_decay": 0.5, "schedule": schedule}
    sizes = {"seq_len": 64, "global_batch_size": 8, "checkpoint": {"every": 8}, "log_every": 1}
    return {"objective": "next_token", "steps": steps, "optimizer": optimizer, **sizes, **settings}


def test_a_decay_from_a_stable_checkpoint_is_the_run_that_had_it_from_the_start(tmp_path: Path) -> None:
    source = {"name": "stdlib", "path": "${stdlib}", "include": ["json/*.py", "email/*.py", "http/*.py"]}
    model = {"vocab_size": 512, "d_model": 32, "d_ff": 64, "num_layers": 2, "num_heads": 2, "num_kv_heads": 2}
    run = {
        "name": "run",
        "root": str(tmp_path),
        "data": {"sources": [{**source, "license": "PSF-2.0"}], "heldout_fraction": 0.2},
        "tokenizer": {"vocab_size": 512},
        "model": {**model, "head_dim": 16, "max_seq_len": 64, "family": "qwen3", "qk_norm": "head"},
        "train": {
            "stable": stage(16, 0),
            "cooled": stage(14, 0.4, **{"from": "stable@8"}),
            "longer": stage(20, 0, **{"from": "stable@16"}),
            "cooled-at-once": stage(14, 0.4, **{"from": "fresh"}),
            "longer-at-once": stage(20, 0, **{"from": "fresh"}),
        },
    }
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(run))  # YAML has JSON in it
    for name in run["train"]:
        command = [Path(sys.executable).with_name("lifecycle"), "run", config, "--until", name]
        subprocess.run(command, check=True)
    made = open_run(tmp_path / "run")
    for name in ("cooled", "longer"):
        whole = made[f"{name}-at-once"]
        assert made[name].content_hash == whole.content_hash, name
        losses = [[record["loss"] for record in made.log(n) if "loss" in record] for n in (name, f"{name}-at-once")]
        assert losses[0] == losses[1][-len(losses[0]) :] and len(losses[0]) < len(losses[1])
