"""A ladder has the run's data and shape; what it says about a target is checked with losses of a known law."""

import json
from pathlib import Path

import pytest

from lifecycle.cli.scaling import scaling
from lifecycle.core.artifact import Artifact, Draft
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.core.runlog import METRICS
from lifecycle.model.config import ModelConfig
from lifecycle.planning.loss_law import LossLaw
from lifecycle.report.html import render_html
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.ladder import SHARES, Rung, depths_below, ladder, smaller, target_of
from lifecycle.stages.scaling import Measured, forecast, measure, scaling_report

CONFIGS = Path(__file__).parents[2] / "configs"
LAW = LossLaw(0.9, 30.0, 0.35, 120.0, 0.36)
RUN = """
name: ladder
data: {sources: [{name: stdlib, path: "${stdlib}", include: ["json/*.py", "email/*.py"], license: PSF-2.0}]}
tokenizer: {vocab_size: 512}
model: {depth: 12, vocab_size: 512, family: qwen3, qk_norm: head}
train:
  pretrain: {objective: next_token, seq_len: 128, grad_accum: 2, optimizer: {name: muon}}
  chat: {objective: sft, steps: 5, seq_len: 128, global_batch_size: 2}
rows: {docstrings: true}
"""


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return load_config(RunConfig, write(tmp_path), [f"root={tmp_path}"])


def write(folder: Path) -> Path:
    path = folder / "run.yaml"
    path.write_text(RUN)
    return path


def test_a_ladder_reads_the_runs_data_and_its_rungs_grow(config: RunConfig) -> None:
    small, rungs = ladder(config, depths_below(12))
    assert [rung.stage for rung in rungs[:4]] == ["depth-2-25", "depth-2-50", "depth-2-100", "depth-3-25"]
    own, copied = build_graph(config), build_graph(small)
    for name in ("documents", "tokenizer", "tokens"):
        assert own[name].settings(config) == copied[name].settings(small) and own[name].inputs == copied[name].inputs
    assert small.folder == config.folder and "rows" not in copied
    target = target_of(config)
    for rung in rungs:
        ratio = rung.tokens / rung.params / (target.tokens / target.params)
        assert rung.share == pytest.approx(ratio, rel=0.1) and small.starts[rung.stage].is_fresh
        assert rung.model.d_model == 64 * rung.model.num_layers and rung.flops < target.flops
    longest = [rung for rung in rungs if rung.share == 1]
    rates = [rung.train.optimizer.learning_rate for rung in longest]
    assert rates == sorted(rates, reverse=True) and rates[-1] > target.train.optimizer.learning_rate
    same = load_config(
        RunConfig, CONFIGS / "debug.yaml",
        ["model.num_layers=6", "train.pretrain.optimizer.base_width=64",
         "train.pretrain.checkpoint={every: 10, best: heldout_loss}"],
    )  # fmt: skip
    _, transferred = ladder(same, (1, 2, 3, 4))
    assert {rung.train.optimizer.learning_rate for rung in transferred} == {0.01}  # it transfers
    assert {rung.train.checkpoint.best for rung in transferred} == {None}  # it is measured at its end alone


@pytest.mark.parametrize("name", ["llama3_8b_v5p_128", "mixtral_8x7b_v5p_128", "deepseek_v3_v5p_1024", "smollm2_135m"])
def test_every_shape_has_smaller_copies(name: str) -> None:
    model = load_config(RunConfig, CONFIGS / f"{name}.yaml").model
    for depth in range(1, model.num_layers):
        copy = smaller(model, depth)
        assert copy.num_layers == depth and copy.d_model <= model.d_model and copy.head_dim == model.head_dim


def test_what_is_no_ladder_is_refused(config: RunConfig) -> None:
    for depths in ((1, 2, 3), (1, 2, 3, 12), (0, 1, 2, 3), (1, 1, 2, 3)):
        with pytest.raises(ConfigError, match="give 4 or more different depths from 1 to 11"):
            ladder(config, depths)
    assert depths_below(5) == (1, 2, 3, 4) and depths_below(24) == (4, 6, 8, 12)
    with pytest.raises(ConfigError, match="a model of 4 layers has no ladder"):
        depths_below(4)


def test_a_target_is_forecast_from_losses_of_a_law(config: RunConfig) -> None:
    target, (_, rungs) = target_of(config), ladder(config, (2, 3, 4, 6))
    measured = [Measured(rung, LAW.loss(rung.params, rung.tokens), 1e-11 * rung.flops) for rung in rungs]
    known = forecast(target, measured, draws=10)
    assert known.prediction.loss.value == pytest.approx(LAW.loss(target.params, target.tokens), rel=1e-4)
    assert known.core_s.value == pytest.approx(1e-11 * target.flops)
    assert [check.measured.rung.share for check in known.checks] == list(SHARES)
    assert all(check.predicted.value == pytest.approx(check.measured.loss, rel=1e-4) for check in known.checks)
    assert json.loads(json.dumps(known.plain()))["target"]["params"] == target.params
    page = render_html(scaling_report(known, "ladder", config.price))
    assert page.count("<svg") == 3 and "tokens per parameter" in page and "depth-6-100" in page
    failed = [*measured[:-1], Measured(measured[-1].rung, 1.5 * measured[-1].loss, measured[-1].core_s)]
    assert [check.is_inside for check in forecast(target, failed, draws=10).checks][-1] is False


def test_one_process_of_a_job_shows_its_progress(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[object] = []
    monkeypatch.setattr("lifecycle.core.distributed.start", lambda _: None)
    monkeypatch.setattr("lifecycle.core.distributed.is_writer", lambda: False)
    monkeypatch.setattr("lifecycle.cli.scaling.bring_up_to_date", lambda *given: shown.append(given[2]))
    scaling(write(tmp_path), f"root={tmp_path}")
    assert [type(progress) for progress in shown] == [Silent]


def test_rungs_that_were_measured_on_different_text_have_no_law(config: RunConfig, tmp_path: Path) -> None:
    """What a rung is measured on is no part of its key, so it is not trained again."""
    _, rungs = ladder(config, (1, 2, 3, 4))

    def rung_of(rung: Rung, size: int) -> Artifact:
        draft = Draft(tmp_path / str(size), rung.stage, {}, {})
        (draft.open() / METRICS).write_text('{"step": 1, "heldout_bits_per_byte": 3.5, "cpu_s": 2.0}\n')
        return draft.commit({}, how=[{"eval_bytes": 1}, {"eval_bytes": size}])

    alike = {rung.stage: rung_of(rung, 1000) for rung in rungs}
    assert [(run.loss, run.core_s) for run in measure(rungs, alike)] == [(3.5, 2.0)] * 12
    with pytest.raises(ConfigError, match=r"depth-4-50 on 1000, depth-4-100 on 2000 bytes; set eval_bytes back"):
        measure(rungs, alike | {rungs[-1].stage: rung_of(rungs[-1], 2000)})


@pytest.mark.long
def test_a_real_ladder_is_trained_once_and_predicts_its_deepest_rung(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Five layers of width 80 and five tokens per parameter: five core-minutes."""
    sizes = ("model.depth=5", "model.head_dim=16", "model.d_model=80", "train.pretrain.steps=300")
    words = (f"root={tmp_path}", *sizes, "train.pretrain.seq_len=64")
    scaling(write(tmp_path), *words, "depths=[1,2,3,4]")
    said = capsys.readouterr().out
    print(said)
    known = json.loads((tmp_path / "ladder" / "scaling.json").read_text())
    assert [check["stage"] for check in known["checks"]] == ["depth-4-25", "depth-4-50", "depth-4-100"]
    assert known["loss"]["low"] < known["loss"]["value"] < known["loss"]["high"]
    made = {path: path.stat().st_mtime_ns for path in (tmp_path / "ladder").glob("depth-*/manifest.json")}
    assert len(made) == 12
    scaling(write(tmp_path), *words, "depths=[1,2,3,4]")
    assert made == {path: path.stat().st_mtime_ns for path in (tmp_path / "ladder").glob("depth-*/manifest.json")}


def test_rungs_are_facts_of_their_models() -> None:
    train = target_of(load_config(RunConfig, CONFIGS / "debug.yaml")).train
    rung = Rung("x", 1.0, ModelConfig.model_validate({"depth": 4, "vocab_size": 64}), train)
    layer = 4 * 256**2 + 3 * 256 * 768 + 2 * 256
    assert rung.tokens == 30 * 8 * 128 and rung.params == 4 * layer + 256 + 64 * 256
