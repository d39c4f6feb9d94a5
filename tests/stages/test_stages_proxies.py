"""A mixture learnt from proxies: their mixtures and stages, the advice that a known law gives, and the whole verb."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from trees import MODEL, SIZES, next_token, run_of

from lifecycle.cli.data_mix import NUMBERS, WEIGHTS, mix
from lifecycle.core.artifact import Draft
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.runlog import METRICS
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph
from lifecycle.stages.proxies import Advice, advise, fewest_runs, losses_of, mixtures, proxies, targets_of
from lifecycle.training.config import PERIOD
from lifecycle.training.mixture_setting import source_weights

TOKENS = {"web/crawl": 700_000, "web/news": 250_000, "code": 50_000}
NAMES = sorted(TOKENS)


def config(steps: int = 100) -> RunConfig:
    data = {"sources": [{"name": name.replace("/", "-"), "path": name} for name in TOKENS]}
    return run_of({"pretrain": next_token(steps=steps, grad_accum=1), "more": next_token()}, data=data)


def test_the_first_proxy_has_the_sizes_and_the_others_spread_around_them() -> None:
    drawn = mixtures(TOKENS, 60, seed=0)
    assert drawn[0] == source_weights("size", TOKENS)
    assert all(sum(mixture.values()) == PERIOD and min(mixture.values()) >= 1 for mixture in drawn)
    code = [mixture["code"] / PERIOD for mixture in drawn]
    assert min(code) < 0.05 and max(code) > 0.3, "a small source varies, too"
    assert drawn[:9] == mixtures(TOKENS, 9, seed=0) and drawn[1] != mixtures(TOKENS, 9, seed=1)[1]
    with pytest.raises(ConfigError, match=r"--runs=5: 3 sources need 6 or more"):
        mixtures(TOKENS, fewest_runs(3) - 1, seed=0)
    with pytest.raises(ConfigError, match="two sources or more, and the token shards have 1"):
        mixtures({"a": 1}, 9, seed=0)


def test_proxies_are_stages_of_the_run_with_its_data() -> None:
    run = config()
    sources = [name.replace("/", "-") for name in TOKENS]
    small, rungs = proxies(run, 1, 0.25, {"mix-0": dict.fromkeys(sources, 1.0), "mix-1": {"code": 1.0}})
    assert [*small.train] == ["mix-0", "mix-1"] and small.folder == run.folder
    assert [rung.train.mixture for rung in rungs] == [dict.fromkeys(sources, 1.0), {"code": 1.0}]
    assert rungs[0].model.num_layers == 1 and rungs[0].train.eval_every == rungs[0].train.steps
    graphs = [build_graph(c)["tokens"].settings(c) for c in (run, small)]
    assert graphs[0] == graphs[1]
    with pytest.raises(ConfigError, match=r"--depth=3: train\.pretrain's model has 2 layers"):
        proxies(run, 3, 0.25, {})


def test_targets_are_all_held_out_text_or_what_is_named() -> None:
    assert targets_of(TOKENS, ()) == [*TOKENS]
    assert targets_of(TOKENS, ("web",)) == ["web/crawl", "web/news"]
    assert targets_of(TOKENS, ("code", "web/news")) == ["web/news", "code"]
    sorted_by_topic = {"web/crawl/topic-00": 1, "web/crawl/topic-01": 2, "web/news/none": 3, "code": 4}
    assert targets_of(sorted_by_topic, ("web/crawl", "web/news/none")) == [*sorted_by_topic][:3]
    assert targets_of(sorted_by_topic, ("web/crawl/topic-01",)) == ["web/crawl/topic-01"]
    assert targets_of(sorted_by_topic, ("topic-00", "code")) == ["web/crawl/topic-00", "code"]
    with pytest.raises(ConfigError, match=r"--target=cod: no held-out text has this name; did you mean 'code'\?"):
        targets_of(TOKENS, ("cod",))
    with pytest.raises(ConfigError, match=r"two sources or more is needed; raise data\.heldout_fraction"):
        targets_of({"code": 3}, ())


HELD_OUT = {"code": 1000, "web/news": 1000, "web/crawl": 9}


def advice(steps: int) -> Advice:
    """From proxies whose losses on `code` and `web/news` fall with the sources' own shares."""
    chosen, targets = mixtures(TOKENS, 24, seed=0), ["code", "web/news"]
    losses = [[1 + math.exp(-2 * mixture[name] / PERIOD) for name in targets] for mixture in chosen]
    return advise(config(steps), chosen, losses, TOKENS, HELD_OUT, targets)


def test_a_known_optimum_is_found_and_a_source_without_use_gets_least() -> None:
    """Two equal targets: equal shares of their sources, and of the third as little as was tried."""
    found = advice(steps=1)
    assert found.rows["code"] == pytest.approx(found.rows["web/news"], abs=0.1 * PERIOD)
    least = min(mixture["web/crawl"] for mixture in mixtures(TOKENS, 24, seed=0))
    assert found.rows["web/crawl"] == pytest.approx(least, abs=2)
    assert found.is_clear and found.rank_correlation > 0.95 and found.error < 0.01
    assert found.predicted < found.predicted_size == pytest.approx(found.measured_size, abs=0.01)
    assert json.loads(json.dumps(found.plain()))["runs"] == 24


def test_the_run_reads_no_source_more_than_four_times() -> None:
    """A run of 512,000 tokens: four epochs of the 50,000 tokens of code are 39 % of it; of 1,024,000, half."""
    for steps, most in ((8_000, 400), (16_000, 200)):
        assert advice(steps).rows["code"] == pytest.approx(most * PERIOD / 1024, abs=2)
    shares = advice(10**7).rows  # here no mixture repeats less
    assert shares["code"] > 0.2 * PERIOD


def test_noise_is_no_gain_and_a_proxy_that_diverged_is_named() -> None:
    chosen, draw = mixtures(TOKENS, 24, seed=0), np.random.default_rng(0)
    losses = [[2 + 0.01 * draw.normal()] for _ in chosen]
    assert not advise(config(), chosen, losses, TOKENS, HELD_OUT, ["code"]).is_clear
    losses[7] = [math.nan]
    with pytest.raises(ConfigError, match="mix-7 has the loss nan; lower the learning rate"):
        advise(config(), chosen, losses, TOKENS, HELD_OUT, ["code"])


def test_a_proxy_s_losses_are_its_last(tmp_path: Path) -> None:
    draft = Draft(tmp_path, "mix-0", {}, {}, {})
    draft.open()
    records = [
        {"step": s, "heldout_bits_per_byte": 9, "heldout_bits_per_byte.a": 3 - s, "heldout_bits_per_byte.b/c": 5}
        for s in (0, 2)
    ]
    artifact = draft.commit({})
    (artifact.path / METRICS).write_text("".join(json.dumps(record) + "\n" for record in records))
    assert losses_of(artifact, ["b/c", "a"]) == [5, 1]


@pytest.mark.slow
def test_the_verb_trains_proxies_and_writes_a_mixture_that_a_stage_can_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"quality": {"gopher": None, "repetition": None, "c4": None, "fineweb": None}, "heldout_fraction": 0.3}
    corpora: dict[str, Any] = {}
    draw = np.random.default_rng(0)
    for name, letters in (("letters", "abcdefgh"), ("digits", "01234567")):
        (tmp_path / name).mkdir()
        for number in range(12):
            words = ["".join(draw.choice(list(letters), 5)) for _ in range(60)]
            (tmp_path / name / f"{number:02d}.txt").write_text(" ".join(words) + "\n")
        corpora[name] = rules | {"sources": [{"name": "own", "path": str(tmp_path / name)}]}
    run = {"name": "run", "root": str(tmp_path), "tokenizer": {"kind": "bytes"}, "data": corpora, "model": MODEL}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(run | {"train": {"base": SIZES | next_token(steps=12)}}))
    mix(path, runs=5, depth=1, only_plan=True)
    assert "5 proxies and one to check them, each of" in capsys.readouterr().out
    mix(path, runs=5, depth=1, share_of_tokens=1.0)
    shown = capsys.readouterr().out
    assert "digits/own" in shown and "rank correlation" in shown and "mixture.yaml" in shown
    numbers = json.loads((tmp_path / "run" / NUMBERS).read_text())
    assert numbers["runs"] == 5 and numbers["measured"] > 0 and sum(numbers["rows"].values()) == PERIOD
    learnt = load_config(RunConfig, path, [f"train.base.mixture={tmp_path / 'run' / WEIGHTS}"])
    assert learnt.train["base"].plain()["mixture"] == numbers["rows"]
