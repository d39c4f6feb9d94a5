"""Writes a plan to a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lifecycle.planning.topology import Topology


def write_plan(folder: Path, name: str, topology: Topology, plan: Mapping[str, Any]) -> Path:
    """Writes a plan's JSON into the run's folder, as `plan-NAME-TOPOLOGY.json`."""
    path = folder / f"plan-{name}-{topology.name.replace(':', '-').replace('*', '-slices')}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(plan, indent=1) + "\n", encoding="utf-8")
    return path
