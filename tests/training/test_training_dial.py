"""The dial against published models, and that what is given wins."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from lifecycle.model.config import ModelConfig
from lifecycle.training.dial import TOKENS_PER_PARAMETER, batch_tokens, counted_params, fill, learning_rate

DEPTHS = st.integers(1, 96)


def run(model: dict[str, Any], **stage: Any) -> dict[str, Any]:
    return {"model": model, "train": {"pretrain": {"objective": "next_token", "seq_len": 256, **stage}}}


def filled(model: dict[str, Any], **stage: Any) -> dict[str, Any]:
    return {known.setting: known.value for known in fill(run(model, **stage))[1]}


@pytest.mark.parametrize(
    ("layers", "width", "rows", "rate"),
    [(30, 4096, 2304, 4.2e-4), (95, 8192, 4608, 3.2e-4)],
    ids=["7B", "67B"],
)
def test_batch_and_learning_rate_are_those_of_deepseeks_models(layers: int, width: int, rows: int, rate: float) -> None:
    """DeepSeek LLM, tables 2 and 5: 2 T tokens in rows of 4,096; the FLOPs per token are those of its equation 2."""
    flops = (72 * layers * width**2 + 12 * layers * width * 4096) * 2e12
    assert batch_tokens(flops) == pytest.approx(rows * 4096, rel=0.11)
    assert learning_rate(flops) == pytest.approx(rate, rel=0.05)


def test_a_depth_of_12_has_gpt3_smalls_width_and_heads() -> None:
    """Brown et al. 2020, table 2.1; 8/3 of the width, gated, has the weights of four times the width, ungated."""
    model = ModelConfig.model_validate({"depth": 12, "vocab_size": 50257})
    assert (model.num_layers, model.d_model, model.num_heads, model.head_dim) == (12, 768, 12, 64)
    assert 3 * model.d_ff == 2 * 4 * model.d_model


@given(DEPTHS, st.integers(1, 10**6), st.sampled_from([128, 512, 4096]), st.integers(1, 6), st.booleans())
def test_every_depth_makes_a_model_and_a_budget(depth: int, vocab: int, seq_len: int, accum: int, tied: bool) -> None:
    sizes = {"depth": depth, "vocab_size": vocab, "tie_embeddings": tied}
    model = ModelConfig.model_validate(sizes)
    assert model.num_heads * model.head_dim == model.d_model and not model.d_ff % 128
    stage = fill(run(sizes, seq_len=seq_len, grad_accum=accum))[0]["train"]["pretrain"]
    per_step = stage["global_batch_size"] * seq_len
    assert stage["global_batch_size"] % accum == 0
    over = stage["steps"] * per_step - TOKENS_PER_PARAMETER * counted_params(model)
    assert 0 <= over < per_step
    assert stage["optimizer"]["schedule"]["warmup_steps"] < stage["steps"]


@given(DEPTHS, st.sets(st.sampled_from(["d_ff", "num_kv_heads", "head_dim", "d_model", "num_heads"])))
def test_given_sizes_win(depth: int, names: set[str]) -> None:
    sizes = {name: 128 if name == "d_model" else 2 for name in names}
    if names & {"num_heads", "num_kv_heads"} == {"num_kv_heads"}:
        sizes["num_heads"] = 4
    model = ModelConfig.model_validate({"depth": depth, "vocab_size": 64} | sizes).plain()
    assert all(model[name] == value for name, value in sizes.items()) and "depth" not in model


def test_given_training_settings_win_and_the_rest_follows() -> None:
    model = {"depth": 4, "vocab_size": 4096}
    alone = filled(model)
    at = "train.pretrain"
    rows, rate = alone[f"{at}.global_batch_size"], alone[f"{at}.optimizer.learning_rate"]
    four = filled(model, global_batch_size=4 * rows)
    assert four[f"{at}.optimizer.learning_rate"] == pytest.approx(2 * rate, rel=0.01)  # square root of the batch
    assert four[f"{at}.steps"] == pytest.approx(alone[f"{at}.steps"] / 4, abs=1)
    short = filled(model, steps=30, optimizer={"schedule": {"kind": "cosine"}})
    assert f"{at}.steps" not in short and short[f"{at}.global_batch_size"] == rows
    stage = fill(run(model, optimizer={"name": "muon", "schedule": {"kind": "cosine"}}))[0]["train"]["pretrain"]
    assert (stage["optimizer"]["name"], stage["optimizer"]["schedule"]["kind"]) == ("muon", "cosine")


def test_only_stages_of_tokens_from_fresh_weights_have_a_budget() -> None:
    stage = {"objective": "next_token", "seq_len": 128}
    plain = ModelConfig.model_validate({"depth": 1, "vocab_size": 64}).plain()
    tree = {
        "model": {"small": {"depth": 2, "vocab_size": 64}, "plain": plain},
        "train": {
            "first": stage,
            "second": stage,
            "again": {**stage, "from": "fresh"},
            "bundle": {**stage, "from": "some/bundle"},
            "other": {**stage, "model": "plain"},
            "chat": {**stage, "objective": "sft", "from": "fresh"},
        },
    }
    changed, known = fill(tree)
    assert [name for name, own in changed["train"].items() if "steps" in own] == ["first", "again"]
    assert {setting.setting.split(".")[1] for setting in known} == {"small", "first", "again"}


@pytest.mark.parametrize(
    "tree",
    [None, {}, {"model": "llama3_8b"}, {"model": {"depth": 2}}, {"model": {"depth": -1, "vocab_size": 4}, "train": {}},
     run({"depth": 2, "vocab_size": 64}, seq_len="long"), run({"depth": 2, "vocab_size": 64}, optimizer=3, steps="x")],
)  # fmt: skip
def test_faulty_settings_are_left_to_their_own_checks(tree: Any) -> None:
    assert fill(tree) is not None


@pytest.mark.parametrize(
    ("sizes", "says"),
    [
        ({"depth": 0}, "depth=0: expected a number of layers"),
        ({"depth": True}, "depth=True: expected"),
        ({"depth": 12, "num_layers": 12}, "leave out num_layers=12, or leave out depth"),
        ({"depth": 2, "d_model": 100}, "d_model=100 is not a multiple of head_dim=64; change one, or give num_heads"),
        ({"depth": 2, "num_kv_heads": 4}, "num_heads=2 is not a multiple of num_kv_heads=4"),
        ({"depth": 2, "head_dim": 0}, "head_dim"),
    ],
)
def test_contradictions_are_refused(sizes: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        ModelConfig.model_validate({"vocab_size": 64} | sizes)


def test_a_stage_that_is_given_in_epochs_gets_no_steps() -> None:
    stage = {"objective": "next_token", "epochs": 2, "seq_len": 128}
    tree, filled = fill({"model": {"depth": 4, "vocab_size": 512}, "train": {"base": stage}})
    assert "steps" not in tree["train"]["base"] and "global_batch_size" in tree["train"]["base"]
    assert not any(known.setting.endswith("steps") for known in filled)
