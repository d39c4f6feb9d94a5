"""Drafters that follow the model: the same tokens as without, and drafts that show that their caches are right."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.typing import Array
from lifecycle.inference.bundle import load_bundle
from lifecycle.inference.draft_follower import shared_kinds
from lifecycle.inference.draft_head import Head
from lifecycle.inference.draft_model import DraftModel
from lifecycle.inference.draft_module import Module
from lifecycle.inference.drafters import drafter_for, require_fit
from lifecycle.inference.drafting import Ngram
from lifecycle.inference.generation import Completion
from lifecycle.inference.model import Model
from lifecycle.inference.speculation import DraftPolicy, SpeculationConfig
from lifecycle.inference.stats import EngineStats
from lifecycle.kernels.linear import is_rounded
from lifecycle.model.config import DrafterConfig, ModelConfig, WeightFormat
from lifecycle.model.decoder import forward
from lifecycle.model.drafter import VOCABULARY
from lifecycle.model.embedding import logits
from lifecycle.model.mtp import ahead
from lifecycle.model.params import Params
from lifecycle.model.prediction import forward_modules
from lifecycle.model.stacks import DRAFTER, MODULES, MODULES_STACK
from lifecycle.testing.families import MODELS, random_params
from lifecycle.testing.models import random_model
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.weights.drafters import FOLDER, write_drafter
from lifecycle.weights.names import canonical_name
from lifecycle.weights.published import save_weights
from tests.inference.drafted import DRAFTS, GREEDY, TO_THE_END, answers, drafting_engine, run

LONG = ([5, 6] * 90, GREEDY)  # its first chunk is whole


@pytest.fixture(scope="module")
def plain(model: Model) -> tuple[list[Completion], EngineStats]:
    return run(model, None)


class EveryOther(DraftPolicy):
    def __init__(self) -> None:
        super().__init__()
        self._is_next = False

    def wants_drafts(self, num_rows: int) -> bool:
        self._is_next = not self._is_next
        return self._is_next


def same(model: Model) -> DraftModel:
    return DraftModel(model.params, model.config, model.config, num_tokens=DRAFTS)


@pytest.mark.long
def test_all_that_the_model_itself_drafts_is_accepted(
    model: Model, plain: tuple[list[Completion], EngineStats], compiled: list[str]
) -> None:
    """In too few pages for two requests, after a prefix that was cached, greedy, sampled and with penalties: a place in
    its cache that were missing or wrong would cost a draft. Nothing is compiled after the warm-up."""
    with drafting_engine(model, same(model), model.config.max_seq_len, warm_up=True) as engine:
        compiled.clear()
        found = answers(engine, TO_THE_END)
        before, again = (engine.submit(*LONG) for _ in range(2))
        assert before.wait() == again.wait()
        stats = engine.stats
        assert compiled == []
    assert found == plain[0][: len(TO_THE_END)]
    assert stats.given_up > 0 and stats.cached_tokens > 0
    assert stats.draft_tokens == stats.accepted_tokens > 0


@pytest.mark.long
def test_steps_without_drafts_are_read_along(model: Model) -> None:
    """A request in a grammar gets no drafts, and the steps of a dispatch may be plain: what comes next is drafted."""
    with drafting_engine(model, same(model)) as engine:
        engine._runner._drafts = EveryOther()
        grammar = GREEDY.model_copy(update={"grammar": "start: /[0-9]{30}/"})
        generations = [engine.submit([65, 66], grammar), engine.submit(*TO_THE_END[0])]
        assert all(generation.wait() for generation in generations)
        assert engine.stats.draft_tokens == engine.stats.accepted_tokens > 0


@pytest.mark.long
def test_a_draft_model_that_knows_nothing_changes_nothing(
    model: Model, plain: tuple[list[Completion], EngineStats]
) -> None:
    """Of other sizes, with a window and a larger vocabulary."""
    sizes = {"d_model": 16, "layer_pattern": ("local", "global"), "window": 9, "vocab_size": 280}
    draft = random_model(1, **sizes)
    found, stats = run(model, DraftModel(draft.params, draft.config, model.config, num_tokens=DRAFTS))
    assert found == plain[0]
    assert stats.draft_tokens > stats.accepted_tokens


def knowing(share: float) -> tuple[Model, Params]:
    """A model whose next token follows from the newest one, but for `share` of what its layers add; and a module that
    goes on from the token it is given, but for as much of what its block adds."""
    whole = random_model(num_mtp_modules=1)
    module = jax.tree.map(lambda stack: stack[0], whole.params[MODULES][MODULES_STACK])

    def quiet(path: Any, array: Array) -> Array:
        return share * array if path[-1].key in ("o", "down") else array

    params = jax.tree_util.tree_map_with_path(quiet, whole.params)
    module = jax.tree_util.tree_map_with_path(quiet, module)
    d_model = whole.config.d_model
    module["projection"] = jnp.eye(2 * d_model, d_model) + share * module["projection"]
    module["embed_norm"]["scale"] = jnp.ones(d_model)
    module["norm"] = params["norm"]
    stacked = {MODULES_STACK: jax.tree.map(lambda array: array[None], module)}
    return replace(whole, params={**params, MODULES: stacked}), module


@partial(jax.jit, static_argnums=0)
def foreseen(config: ModelConfig, params: Params, tokens: Array) -> Array:
    """What module 1 says at each position of a whole row."""
    positions, one = jnp.arange(tokens.shape[1])[None], jnp.ones(tokens.shape, jnp.int32)
    row = {"tokens": tokens, "targets": tokens, "positions": positions, "segment_ids": one, "loss_mask": one * 1.0}
    hidden = forward(config, params, tokens, positions)
    (state,), _ = forward_modules(config, params, hidden, [ahead(row, 1)])
    return logits(config, params, state[0]).argmax(-1)


def expected_drafts(model: Model, prompt: Sequence[int], made: Sequence[int]) -> tuple[int, int]:
    """How many drafts there are, one a step, and how many are right: by passes over the whole row."""
    row = np.zeros((1, model.config.max_seq_len), np.int32)
    row[0, : len(prompt) + len(made)] = [*prompt, *made]
    said = np.asarray(foreseen(model.config, model.params, row))
    newest, end, num, right = len(prompt), len(prompt) + len(made) - 1, 0, 0
    while newest < end:
        is_drafting = newest < end - 1
        is_right = is_drafting and said[newest - 1] == row[0, newest + 1]
        num, right, newest = num + is_drafting, right + is_right, newest + 1 + is_right
    return num, right


@pytest.mark.long
def test_a_module_drafts_what_it_says_of_whole_rows() -> None:
    """Prompts of one chunk and of several."""
    model, module = knowing(0.3)
    requests = [(prompt, GREEDY) for prompt in ([65], LONG[0], list(range(30, 60)))]
    with drafting_engine(model, Module(module, model.config, num_tokens=1)) as engine:
        found = answers(engine, requests)
        stats = engine.stats
    expected = [expected_drafts(model, prompt, one.token_ids) for (prompt, _), one in zip(requests, found, strict=True)]
    assert (stats.draft_tokens, stats.accepted_tokens) == tuple(map(sum, zip(*expected, strict=True)))
    assert 0 < stats.accepted_tokens < stats.draft_tokens


@pytest.mark.long
def test_a_module_that_knows_drafts_several_tokens_by_itself() -> None:
    model, module = knowing(0.0)
    plain, with_drafts = (
        run(model, None),
        run(model, Module(module, model.config, num_tokens=DRAFTS), model.config.max_seq_len),
    )
    assert with_drafts[0] == plain[0]
    assert with_drafts[1].accepted_tokens > 0.9 * with_drafts[1].draft_tokens > 0
    assert with_drafts[1].given_up > 0


def saved(config: ModelConfig, folder: Path) -> Path:
    config, tokenizer = config.model_copy(update={"vocab_size": 264, "max_seq_len": 320}), ByteTokenizer()
    save_weights(config, random_params(config), folder)
    tokenizer.save(folder)
    ChatTemplate(tokenizer).save(folder)
    return folder


@pytest.mark.long
@pytest.mark.parametrize("weights", [None, "int8"])
def test_a_bundle_drafts_with_its_module_or_with_another_bundle(tmp_path: Path, weights: WeightFormat | None) -> None:
    """Latent attention and experts, whose products have other last bits for other numbers of rows; a draft model
    without either."""
    for name in ("deepseek_v3", "llama"):
        (tmp_path / name).mkdir()
    folder, small = (saved(MODELS[name], tmp_path / name) for name in ("deepseek_v3", "llama"))
    model = load_bundle(folder, weights=weights)
    found, _ = run(model, None)
    for settings in (SpeculationConfig(method="mtp"), SpeculationConfig(method="model", bundle=small)):
        drafter = drafter_for(settings, model, folder, weights=weights)
        drafted, stats = run(model, drafter)
        for one, other in zip(drafted, found, strict=True):
            assert one.token_ids == other.token_ids
            own, expected = ([token.logprob for token in each.tokens] for each in (one, other))
            np.testing.assert_allclose(own, expected, atol=1e-4 if weights is None else 0.1)
        assert stats.draft_tokens > 0


@pytest.mark.long
def test_a_heads_weights_may_be_rounded_where_the_models_are_not(tmp_path: Path) -> None:
    folder = saved(random_model(num_layers=3).config, tmp_path)
    config = load_bundle(folder).config
    held = config.model_copy(update={"drafter": DrafterConfig(vocab_size=40)})
    head = random_params(held)[DRAFTER]
    head[VOCABULARY]["ids"] = jnp.arange(60, 100, dtype=jnp.float32)
    leaves = dict(jax.tree_util.tree_leaves_with_path(head))
    arrays = {canonical_name(path): np.asarray(array) for path, array in leaves.items()}
    write_drafter(held, arrays.__getitem__, folder / FOLDER)
    served = load_bundle(folder)
    plain, _ = run(served, None)
    cases: list[tuple[dict[str, str], WeightFormat | None]] = [({"weights": "int8"}, None), ({}, "int8")]
    drafters = [
        drafter_for(validate(SpeculationConfig, {"method": "eagle", **settings}), served, folder, None, whole)
        for settings, whole in cases
    ]
    for drafter in drafters:
        assert isinstance(drafter, Head)
        rounded = [leaf for leaf in jax.tree.leaves(drafter.params, is_leaf=is_rounded) if is_rounded(leaf)]
        assert len(rounded) == 9  # projection, four of attention, three of the feed-forward, the head
    found, stats = run(served, drafters[0])
    assert found == plain
    assert stats.draft_tokens > 0


def test_settings_say_which_drafter(model: Model, tmp_path: Path) -> None:
    folder = saved(model.config, tmp_path)
    assert drafter_for(None, model, folder) is None
    assert drafter_for(SpeculationConfig(num_tokens=3), model, folder) == Ngram(num_tokens=3)
    with pytest.raises(ConfigError, match=r"speculation.method=eagle: the bundle has no folder `drafter`"):
        drafter_for(SpeculationConfig(method="eagle"), model, folder)
    with pytest.raises(ConfigError, match=r"speculation.method=mtp: the bundle has no prediction modules"):
        drafter_for(SpeculationConfig(method="mtp"), model, folder)
    for wrong, message in (
        ({"method": "model"}, r"method=model drafts with another model; set bundle=FOLDER"),
        ({"method": "mtp", "bundle": "there"}, r"bundle is for method=model, and method=mtp"),
        ({"method": "ngram", "weights": "int8"}, r"weights=int8 is for a drafter's matrices"),
    ):
        with pytest.raises(ConfigError, match=message):
            validate(SpeculationConfig, wrong)


def test_a_draft_model_that_does_not_fit_is_refused(model: Model) -> None:
    shorter = model.config.model_copy(update={"max_seq_len": 200})
    with pytest.raises(ConfigError, match=r"contexts of 200 tokens, and 320 are served; set serve.max_seq_len=200"):
        require_fit(replace(model, config=shorter), model, 320)
    require_fit(replace(model, config=shorter), model, 200)
    other = ByteTokenizer()
    other.special_ids = {**other.special_ids, "<other>": other.special_ids.pop("<pad>")}
    with pytest.raises(ConfigError, match=r"another tokenizer than the model: id 258 is .*'<other>', not .*'<pad>'"):
        require_fit(replace(model, tokenizer=other), model, 200)


@pytest.mark.slow
def test_pages_are_shared_with_layers_that_see_as_much() -> None:
    full, windows, mixed = (
        MODELS["llama"].model_copy(update={"layer_pattern": pattern, "window": window})
        for pattern, window in ((("global",), None), (("local",), 9), (("local", "global"), 9))
    )
    shorter = windows.model_copy(update={"window": 5})
    assert shared_kinds(full, mixed, "it") == {"full": "full"}
    assert shared_kinds(mixed, full, "it") == {"window": "full", "full": "full"}
    assert shared_kinds(shorter, mixed, "it") == shared_kinds(shorter, windows, "it") == {"window": "window"}
    assert shared_kinds(windows, mixed.model_copy(update={"window": 5}), "it") == {"window": "full"}
    for own, there in ((full, windows), (windows, shorter)):
        with pytest.raises(ConfigError, match=r"it looks further back than this model's layers, which keep \d tokens"):
            shared_kinds(own, there, "it")
