"""The plan verb's own words beside a run's settings."""

import pytest

from lifecycle.core.config import ConfigError
from lifecycle.stages.plan import PlanConfig, split


def test_the_plans_words_are_taken_out_and_the_runs_are_left() -> None:
    own, others = split(("topology=v5p:4x4x4", "pretrain.steps=10", "search=true", "mesh.fsdp=64"))
    assert own == PlanConfig(topology="v5p:4x4x4", search=True)
    assert others == ("pretrain.steps=10", "mesh.fsdp=64")
    assert split(())[0] == PlanConfig()


@pytest.mark.parametrize(
    ("word", "says"),
    [
        ("topolgy=v5p:4x4x4", "did you mean 'topology'"),
        ("stage=serve", "stage"),
        ("search=perhaps", "search"),
    ],
)
def test_a_wrong_word_is_refused(word: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        split((word,))
