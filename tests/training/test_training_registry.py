"""Objectives by name: settings of their own, refused elsewhere, and nothing of JAX's libraries to read them."""

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.training.objectives.registry import ObjectiveKind, objective_kind, objective_names, register
from lifecycle.training.preference import DpoConfig

SIZES: dict[str, Any] = {"steps": 4, "seq_len": 8, "global_batch_size": 2}


@pytest.mark.parametrize("name", ["next_token", "sft", "dpo", "orpo"])
def test_an_objective_has_settings_under_its_own_name(name: str) -> None:
    kind = objective_kind(name)
    assert kind.name == name and kind.settings(**SIZES).objective == name
    assert kind.settings(**SIZES).plain()["objective"] == name
    other = "dpo" if name != "dpo" else "orpo"
    with pytest.raises(ConfigError, match=f"objective: these are the settings of objective '{name}'"):
        validate(kind.settings, SIZES | {"objective": other})


@pytest.mark.parametrize(
    ("name", "foreign"),
    [("next_token", "beta"), ("sft", "eval_bytes"), ("dpo", "eval_bytes"), ("orpo", "sft_weight")],
)
def test_fields_of_other_objectives_are_refused(name: str, foreign: str) -> None:
    with pytest.raises(ConfigError, match=f"{foreign}: no such setting"):
        validate(objective_kind(name).settings, SIZES | {foreign: 1})


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"objective 'dop' is not known; did you mean 'dpo'\?"):
        objective_kind("dop")


def test_a_name_has_one_objective() -> None:
    kind = objective_kind("dpo")
    register(kind)  # the same again, as by a module that is reloaded
    with pytest.raises(ValueError, match=r"'dpo' is registered already, with lifecycle\.training\.objectives"):
        register(replace(kind, formula="another:formula"))
    assert objective_kind("dpo") is kind and objective_names()[:4] == ("next_token", "sft", "dpo", "orpo")
    with pytest.raises(
        AssertionError, match=r"rows='pages', known: tokens, chat, steps, taught, pairs, labelled, prompts"
    ):
        ObjectiveKind("paged", DpoConfig, "pages", "another:formula")


def test_the_start_is_called_from_in_a_run_file() -> None:
    assert validate(DpoConfig, SIZES | {"from": "chat"}).start == DpoConfig(**SIZES, start="chat").start == "chat"
    with pytest.raises(ConfigError, match=r"form: no such setting; did you mean 'from'\?"):
        validate(DpoConfig, SIZES | {"form": "chat"})


def test_settings_are_read_without_jax() -> None:
    code = (
        "import sys, lifecycle.training.objectives.registry; print({'jax', 'flax', 'optax', 'grain'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "set()\n"
