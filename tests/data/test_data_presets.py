"""The presets for kinds of text are settings of the document pipeline, and a run file can name them."""

from pathlib import Path

import pytest

from lifecycle.cli.arguments import read_config
from lifecycle.core.config import ConfigError

CONFIGS = Path(__file__).parents[2] / "configs"
RUN = CONFIGS / "data" / "debian_docs.yaml"
PRESETS = sorted(path.stem for path in (CONFIGS / "data").glob("*.yaml") if path != RUN)


def test_there_is_one_for_each_kind() -> None:
    assert PRESETS == ["books", "code", "docs", "mail", "web"]


@pytest.mark.parametrize("name", PRESETS)
def test_a_run_can_name_it(name: str) -> None:
    data = read_config(RUN, (f"data.docs.preset={name}",)).corpora["docs"]
    assert len(data.sources) == 10
    assert (data.quality.bigcode is not None) == (name == "code")
    assert (data.quality.fineweb is not None) == (name == "web")
    changed = read_config(RUN, (f"data.docs.preset={name}", "data.docs.heldout_fraction=0.2")).corpora["docs"]
    assert changed.quality == data.quality and changed.heldout_fraction == 0.2


def test_a_preset_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no preset 'wbe' in data/"):
        read_config(RUN, ("data.docs.preset=wbe",))
