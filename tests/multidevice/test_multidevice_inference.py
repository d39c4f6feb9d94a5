"""Prefill and decode on a mesh: the tokens of one device, and its log-probabilities to 1e-5, for every kind of layer.

Log-probabilities are the logits' but for a constant of the row; the likeliest ones are compared with the sampled one.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh

from lifecycle.core.config import ConfigError
from lifecycle.inference.adapters import BankSizes
from lifecycle.inference.beam_search import beam_search
from lifecycle.inference.beams import BeamConfig
from lifecycle.inference.draft_model import DraftModel
from lifecycle.inference.draft_module import Module
from lifecycle.inference.drafting import Drafter, Ngram
from lifecycle.inference.engine import Engine
from lifecycle.inference.generate import embed, generate
from lifecycle.inference.generation import Completion
from lifecycle.inference.lowering import AbstractEngine
from lifecycle.inference.model import Model
from lifecycle.inference.pooling import Pooling
from lifecycle.inference.sampling import SamplingParams
from lifecycle.model.config import CacheFormat, WeightFormat
from lifecycle.model.stacks import MODULES, MODULES_STACK
from lifecycle.model.weight_formats import in_format
from lifecycle.parallel.axes import AXES, MeshConfig
from lifecycle.parallel.mesh import build_mesh, inference_mesh
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from tests.multidevice.meshes import MODELS

CLOSE = 1e-5
NUM_KEPT = 264  # the whole vocabulary: what is recorded of a draw changes none
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=(), top_logprobs=5)
WORDS = tuple((token, other) for token in range(0, 256, 16) for other in (token + 3, (token + 40) % 256))
SAMPLED = SamplingParams(temperature=1.0, top_p=0.9, seed=7, max_tokens=12, stop_ids=(), bad_words_ids=WORDS)
# More requests than slots, windows left behind while decoding, both kinds of sampling in one batch; a page is full in
# the middle of an answer, and a prompt has two pages. Two prompts are asked twice.
REQUESTS = [(size, SAMPLED if size % 3 == 0 else GREEDY) for size in (1, 2, 3, 5, 7, 8, 9, 12, 15, 16, 124, 200)]
# Dense layers with windows and tied tables; biases and caps; experts and sinks; latents. Each pair of axes meets on
# some mesh; `matrix` has more of them, and axes of all devices.
CASES = [("wide", {"fsdp": 4, "tensor": 2})]
LONG = [("latent", {"fsdp": 2, "expert": 4}), ("experts", {"replica": 2, "expert": 2, "tensor": 2})]
MORE = [
    ("projection", {"replica": 2, "fsdp": 2, "tensor": 2}),
    ("dense", {"tensor": 8}),
    ("dense", {"fsdp": 8}),
    ("projection", {"expert": 2, "fsdp": 4}),
    ("experts", {"replica": 2, "fsdp": 2, "tensor": 2}),
    ("experts", {"fsdp": 2, "expert": 4}),
    ("experts", {"expert": 8}),
    ("latent", {"fsdp": 2, "expert": 2, "tensor": 2}),
    ("latent", {"tensor": 8}),
    ("latent", {"replica": 2, "expert": 4}),
]

pytestmark = pytest.mark.usefixtures("layers_in_a_loop")


@cache
def model_of(name: str) -> Model:
    tokenizer = ByteTokenizer()
    sizes = {"head_dim": 16} if name == "wide" else {}  # whole registers, as the CPU kernel of attention takes
    known = MODELS["dense" if name == "wide" else name]
    config = known.model_copy(update={"vocab_size": 264, "max_seq_len": 320, **sizes})
    return Model(config, jax.device_get(random_params(config)), tokenizer, ChatTemplate(tokenizer))


@cache
def one_device(name: str) -> list[Completion]:
    return generate(model_of(name), *requests(), num_kept=NUM_KEPT)


def requests() -> tuple[list[list[int]], list[SamplingParams]]:
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 261, size).tolist() for size, _ in REQUESTS]
    params = [params for _, params in REQUESTS]
    return [*prompts, *prompts[-2:]], [*params, *(SAMPLED.model_copy(update={"seed": seed}) for seed in (8, 9))]


def assert_alike(found: Sequence[Completion], expected: Sequence[Completion]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.token_ids == other.token_ids
        for token, wanted in zip(one.tokens, other.tokens, strict=True):
            logprobs = [[each.logprob, *(logprob for _, logprob in each.top)] for each in (token, wanted)]
            np.testing.assert_allclose(*logprobs, atol=CLOSE, rtol=0)
            if token.draw is not None and wanted.draw is not None:
                assert sorted(token.draw.ids) == sorted(wanted.draw.ids) and token.id in token.draw.ids
                assert token.draw.logprob == pytest.approx(wanted.draw.logprob, abs=CLOSE)


@pytest.mark.parametrize(
    ("name", "axes"),
    [pytest.param(*case, marks=mark) for mark, cases in
     ((pytest.mark.slow, CASES), (pytest.mark.long, LONG), (pytest.mark.matrix, MORE)) for case in cases],
    ids=str,
)  # fmt: skip
def test_a_mesh_generates_what_one_device_does(name: str, axes: dict[str, int]) -> None:
    mesh = build_mesh(MeshConfig(**axes))
    found = generate(model_of(name), *requests(), mesh=mesh, num_kept=NUM_KEPT)
    assert all(token.draw is not None for completion in found for token in completion.tokens)
    assert_alike(found, one_device(name))


def ngrams(_: Model) -> Drafter:
    return Ngram(num_tokens=3)


def the_model_itself(model: Model) -> Drafter:
    return DraftModel(model.params, model.config, model.config, num_tokens=3)


def its_module(model: Model) -> Drafter:
    return Module(
        jax.tree.map(lambda stack: stack[0], model.params[MODULES][MODULES_STACK]), model.config, num_tokens=3
    )


@pytest.mark.long
@pytest.mark.parametrize("drafter", [ngrams, the_model_itself, its_module])
def test_drafts_change_nothing_on_a_mesh(drafter: Callable[[Model], Drafter]) -> None:
    """Devices that divide the rows' sampling follow each row's drafts by themselves."""
    model, mesh = model_of("dense"), build_mesh(MeshConfig(fsdp=4, tensor=2))
    prompts = [[i % period for i in range(8 * period)] for period in (2, 3, 5, 7)] * 4
    params = [each.model_copy(update={"max_tokens": 40}) for each in (GREEDY, SAMPLED)] * 8
    with Engine(model, 8, mesh=mesh, drafter=drafter(model)) as engine:
        found = [one.wait() for one in [engine.submit(*pair) for pair in zip(prompts, params, strict=True)]]
        assert (stats := engine.stats).draft_tokens > 0
    if drafter is not its_module:  # whose weights are random
        assert stats.accepted_tokens > (0.9 * stats.draft_tokens if drafter is the_model_itself else 0)
    assert_alike(found, generate(model, prompts, params))


@pytest.mark.long
@pytest.mark.parametrize("name", ["experts", "latent"])
def test_all_experts_of_few_rows_generate_what_sorted_rows_do(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As accelerators compute them, on a mesh that no other test has: its programs are traced here."""
    monkeypatch.setattr("lifecycle.model.moe.is_few", lambda num_rows: True)
    mesh = build_mesh(MeshConfig(expert=4, tensor=2))
    assert_alike(generate(model_of(name), *requests(), mesh=mesh), one_device(name))


@pytest.mark.long
def test_a_mesh_searches_with_beams_as_one_device_does() -> None:
    """Layers with windows; prompts that end in the middle and at the end of a page, more of them than groups."""
    model, config = model_of("dense"), BeamConfig(num_beams=2)
    prompts = [[i % 250 for i in range(size)] for size in (3, 124, 128, 200, 7)]
    alone = beam_search(model, prompts, config, 8)
    found = beam_search(model, prompts, config, 8, mesh=build_mesh(MeshConfig(fsdp=4, tensor=2)))
    for one, other in zip(found, alone, strict=True):
        assert [own.tokens for own in one] == [own.tokens for own in other]
        np.testing.assert_allclose([own.score for own in one], [own.score for own in other], atol=CLOSE, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize("pooling", ["mean", "last"])
def test_a_mesh_embeds_what_one_device_does(pooling: Pooling) -> None:
    model, mesh = model_of("dense"), build_mesh(MeshConfig(fsdp=4, tensor=2))
    prompts, _ = requests()
    vectors = embed(model, prompts, pooling, mesh=mesh)
    np.testing.assert_allclose(vectors, embed(model, prompts, pooling), atol=CLOSE, rtol=0)


@pytest.mark.long
@pytest.mark.parametrize(
    ("weights", "kv_cache", "near"), [("int8", None, 0.1), ("fp8", None, 0.2), ("int4", "int8", 0.5)]
)
def test_what_is_rounded_is_sharded_as_what_is_not(
    weights: WeightFormat | None, kv_cache: CacheFormat | None, near: float
) -> None:
    """A scale is of all its rows, wherever they are; a device rounds its own part of the activations. A head of the
    cache is on one device, with its scales."""
    plain, mesh = model_of("dense"), build_mesh(MeshConfig(fsdp=2, tensor=2))
    model = replace(plain, params=in_format(plain.config, plain.params, weights))
    prompts = [prompt for prompt in requests()[0] if len(prompt) > 4]
    asking, scores = GREEDY.model_copy(update={"prompt_logprobs": 0, "max_tokens": 1}), []
    for own, devices, is_exact in ((plain, None, True), (model, None, False), (model, mesh, False)):
        with Engine(own, mesh=devices, kv_cache=None if is_exact else kv_cache) as engine:
            generations = [engine.submit(prompt, asking) for prompt in prompts]
            assert all(generation.wait() for generation in generations)
        scores.append([token.logprob for generation in generations for token in generation.prompt_tokens])
    exact, alone, on_mesh = map(np.array, scores)
    error = np.abs(alone - exact).mean()
    assert 0 < error < near
    assert np.abs(on_mesh - exact).mean() < 2 * error


@pytest.mark.long
def test_rows_move_to_the_parts_of_weights_in_8_bits_where_rows_are_not_rounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As on a TPU: a step of 8 rows on two meshes, of which one shards `d_model`."""
    for module in ("kernels.quantised", "model.weight_formats"):
        monkeypatch.setattr(f"lifecycle.{module}.platform", lambda: "tpu")
    plain = model_of("latent")
    model = replace(plain, params=in_format(plain.config, plain.params, "int8"))
    whole, cut = (
        generate(model, *requests(), mesh=build_mesh(MeshConfig(**axes)))
        for axes in ({"tensor": 8}, {"fsdp": 2, "expert": 2, "tensor": 2})
    )
    assert_alike(cut, whole)


@pytest.mark.long
@pytest.mark.parametrize(("name", "axes"), [("dense", {"fsdp": 2, "tensor": 2}), ("latent", {"fsdp": 2, "tensor": 2})])
def test_adapters_are_sharded_as_their_weights_are(name: str, axes: dict[str, int]) -> None:
    """Requests with different adapters, and without one, in the slots of each group."""
    model, prompts = model_of(name), requests()[0]
    adapters = [random_adapter(model.config, seed, rank=3) for seed in (1, 2)]

    def answers(mesh: Mesh | None) -> list[Completion]:
        with Engine(model, adapters=BankSizes(2, 4), mesh=mesh) as engine:
            assert engine.adapters is not None
            held = [None, *map(engine.adapters.load, adapters)]
            asked = [engine.submit(prompt, GREEDY, held[i % 3]) for i, prompt in enumerate(prompts)]
            return [generation.wait() for generation in asked]

    assert_alike(answers(build_mesh(MeshConfig(**axes))), answers(None))


@pytest.mark.long
def test_prompts_of_several_chunks_are_prefilled_by_groups_side_by_side() -> None:
    model, mesh = model_of("dense"), build_mesh(MeshConfig(fsdp=4, tensor=2))
    prompts = [[i % 250 for i in range(size)] for size in (300, 20, 257, 70, 5, 290)]
    assert_alike(generate(model, prompts, GREEDY, mesh=mesh), generate(model, prompts, GREEDY))


@pytest.mark.long
def test_on_a_mesh_too_a_request_alone_equals_the_same_in_a_batch() -> None:
    model, mesh = model_of("dense"), build_mesh(MeshConfig(fsdp=4, tensor=2))
    prompts, params = requests()
    together = generate(model, prompts, params, mesh=mesh)
    for prompt, own, completion in list(zip(prompts, params, together, strict=True))[2:4]:
        assert generate(model, [prompt], own, mesh=mesh) == [completion]


@pytest.mark.long
def test_two_engines_on_one_mesh_answer_side_by_side() -> None:
    """Each device runs both engines' collectives in one order: neither waits for the other for ever."""
    model, mesh = model_of("dense"), build_mesh(MeshConfig(fsdp=4, tensor=2))
    prompts, params = requests()
    with Engine(model, mesh=mesh) as first, Engine(model, mesh=mesh) as second:
        pairs = [
            (first.submit(prompt, own), second.submit(prompt, own)) for prompt, own in zip(prompts, params, strict=True)
        ]
        completions = [(one.wait(), other.wait()) for one, other in pairs]
    assert all(one == other for one, other in completions)
    assert_alike([one for one, _ in completions], one_device("dense"))


@pytest.mark.long
def test_prompts_are_scored_on_a_mesh_as_on_one_device() -> None:
    """By groups of which only some ask."""
    model, (prompts, params) = model_of("dense"), requests()
    asking = [own.model_copy(update={"prompt_logprobs": 2} if n % 2 else {}) for n, own in enumerate(params)]
    scores: list[list[list[float]]] = []
    for mesh in (build_mesh(MeshConfig(fsdp=4, tensor=2)), None):
        with Engine(model, mesh=mesh) as engine:
            generations = [engine.submit(*pair) for pair in zip(prompts, asking, strict=True)]
            assert all(generation.wait() for generation in generations)
        scores.append([[token.logprob for token in generation.prompt_tokens] for generation in generations])
    for one, other, prompt, own in zip(*scores, prompts, asking, strict=True):
        assert len(one) == (0 if own.prompt_logprobs is None else len(prompt) - 1)
        np.testing.assert_allclose(one, other, atol=CLOSE, rtol=0)


def test_a_mesh_that_does_not_fit_is_rejected_with_the_fix() -> None:
    model = model_of("dense")
    for axes, message in (
        ({"stage": 2}, r"mesh\.stage=2: inference runs over replica, fsdp, expert and tensor; set mesh\.stage=1"),
        ({"context": 2, "fsdp": 2}, r"mesh\.context=2: .*; set mesh\.context=1"),
        ({"fsdp": 8}, r"num_slots=12 is not a multiple of the mesh's 8 groups of rows .* nearest: 16"),
    ):
        with pytest.raises(ConfigError, match=message):
            Engine(model, num_slots=12, mesh=build_mesh(MeshConfig(**axes)))
    odd = Model(model.config.model_copy(update={"num_kv_heads": 1}), {}, model.tokenizer, model.template)
    with pytest.raises(ConfigError, match=r"mesh\.tensor=2 does not divide model\.num_kv_heads=1"):
        Engine(odd, num_slots=8, mesh=build_mesh(MeshConfig(tensor=2)))


def test_a_training_mesh_gives_the_devices_of_stage_and_context_to_fsdp() -> None:
    mesh = build_mesh(MeshConfig(stage=2, context=2, tensor=2))
    assert dict(inference_mesh(mesh).shape) == {**mesh.shape, "stage": 1, "context": 1, "fsdp": 4}
    assert set(inference_mesh(mesh).devices.flat) == set(mesh.devices.flat)
    plain = build_mesh(MeshConfig(replica=2, fsdp=2, tensor=2))
    assert inference_mesh(plain) == plain


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_the_programs_trace_for_devices_that_are_not_here(name: str) -> None:
    """Weights and cache as shapes on an abstract mesh: a device has its rows and heads; [B, V] is gathered. Weights are
    gathered for chunks only: a step's few rows move to their parts."""
    config = model_of("dense").config
    sizes = MeshConfig(fsdp=4, tensor=4)
    automatic = (AxisType.Auto,) * len(AXES)
    mesh = AbstractMesh(tuple(getattr(sizes, axis) for axis in AXES), AXES, automatic)
    plain, in_8_bits = (getattr(AbstractEngine(config, 8, 128, mesh, form), name)() for form in (None, "fp8"))
    program = str(plain.jaxpr)
    assert "all_gather" in program and "shard_map" in program
    assert f"f32[{2 if name == 'decode' else 1},264]" in program
    assert "f32[8,264]" not in program
    gathered = re.findall(r":(\S+) = all_gather", program)
    columns = config.num_heads * config.head_dim // sizes.tensor
    assert (f"f32[{config.d_model},{columns}]" in gathered) == (name == "prefill")
    assert (f"f32[1,8,{columns}]" in gathered) == (name == "decode")
    assert f"f8_e4m3fn[{config.d_model // 4}," in str(in_8_bits.jaxpr)
