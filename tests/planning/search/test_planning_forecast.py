"""FLOPs, traffic and times by arithmetic against compiled programs and the lowering contracts."""

from collections import Counter
from dataclasses import replace

import pytest

from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.search.forecast import PRODUCT_SHARE, flops, forecast, link_s, traffic
from tests.planning.shipped import EIGHT_LAYERS, INPUT_OFFLOADED, ROOT, TWO_SLICES, Shipped, shipped

TERA = 1e12
MIXED = "train.pretrain.remat={input: offload, middle: offload, gate: save, up: save, attention_out: save, v: save}"
KEYS = "train.pretrain.remat={k: save, v: save, attention_out: save}"
KINDS = {"all_gather": "all-gather", "reduce_scatter": "reduce-scatter", "all_to_all": "all-to-all"}


# Products and kernels of a compiled step, in TFLOP a device: docs/fit.md's plans; docs/meshes.md, in whole ones.
@pytest.mark.parametrize(
    ("name", "topology", "words", "products", "kernels"),
    [
        ("llama3_8b_v5p_128", "v5p:4x4x4", (), 737.7, 123.1),
        ("llama3_8b_v6e_256", "v6e:16x16", (), 369.8 - 0.96, 61.6),  # without products with ones: 128 columns there
        ("llama3_8b_v6e_256", "v6e:16x16", (KEYS,), 448.0, 61.6),
        ("llama3_8b_128k_v5p_128", "v5p:4x4x4", (), 452.4, 1266.6),
        ("llama3_8b_v5p_128", "v5p:2x2x4", (*EIGHT_LAYERS, "train.pretrain.remat={}"), 265, 20),
        ("llama3_8b_v5p_128", "v5p:4x4x4", (MIXED,), 759.7, 123.1),
        ("llama3_8b_v5p_128", "v5p:4x4x4", ("train.pretrain.remat={}",), 904.9, 158.3),
        ("llama3_70b_v6e_256", "v6e:16x16", (INPUT_OFFLOADED,), 4247.0, 395.8),
        ("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("train.pretrain.remat={input: offload}",), 94.5, 716.9),
        ("llama3_8b_h100_8", "h100:8", (), 5901.9, 1266.6),  # cuDNN's forward kernel twice
    ],
)
def test_flops_are_the_compiled_programs(
    name: str, topology: str, words: tuple[str, ...], products: float, kernels: float
) -> None:
    run = shipped(name, topology, *words)
    found = flops(run.model, run.train, run.candidate, run.topology.chip)
    assert found[0] == pytest.approx(products * TERA, rel=1e-3)
    assert found[1] == pytest.approx(kernels * TERA, abs=0.5 * TERA)


# The expected step of a plan, in ms: docs/fit.md, docs/meshes.md. Cycles are the compiler's, kernels assumed.
@pytest.mark.parametrize(
    ("name", "topology", "words", "step_ms"),
    [
        ("llama3_8b_v5p_128", "v5p:4x4x4", (), 2246),
        ("llama3_8b_v5p_128", "v5p:4x4x4*2", TWO_SLICES, 2529),
        ("llama3_8b_v6e_256", "v6e:16x16", (), 811),
        ("llama3_8b_128k_v5p_128", "v5p:4x4x4", (), 6188),
        ("llama3_8b_v5p_128", "v5p:2x2x4", (*EIGHT_LAYERS, "train.pretrain.remat={}"), 753),
        ("llama3_8b_v5p_128", "v5p:4x4x4", (MIXED,), 2481),
        ("llama3_8b_v5p_128", "v5p:4x4x4", ("train.pretrain.remat={}",), 2776),
        ("llama3_70b_v6e_256", "v6e:16x16", (INPUT_OFFLOADED,), 7831),
        ("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("train.pretrain.remat={input: offload}",), 3593),
        ("llama3_8b_h100_8", "h100:8", (), 10850),
    ],
)
def test_a_step_is_within_a_seventh_of_the_plans(
    name: str, topology: str, words: tuple[str, ...], step_ms: float
) -> None:
    run = shipped(name, topology, *words)
    found = forecast(run.model, run.train, run.candidate, run.topology, run.network)
    assert 1e3 * found.step_s == pytest.approx(step_ms, rel=1 / 7)


def moved(run: Shipped) -> Counter[tuple[str, str]]:
    found: Counter[tuple[str, str]] = Counter()
    for c in traffic(run.model, run.train, run.candidate):
        found[c.kind, "+".join(c.axes)] += c.runs * c.payload_bytes
    return found


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("llama3_8b_v5p_128", "v5p:4x4x4"),
        ("llama3_70b_v6e_256", "v6e:16x16"),
        ("llama3_8b_128k_v5p_128", "v5p:4x4x4"),
        ("mixtral_8x7b_v5p_128", "v5p:4x4x4"),
        ("deepseek_v3_v5p_1024", "v5p:8x8x8"),
    ],
)
def test_traffic_is_the_contracts(name: str, topology: str) -> None:
    found = moved(shipped(name, topology))
    contract = (ROOT / "tests" / "golden" / "contracts" / f"{name}.txt").read_text().splitlines()
    rows = [line.split(" | ") for line in contract]
    promised = {(KINDS[row[0]], row[1]): int(row[3]) for row in rows if row[0] in KINDS}
    large = {key: size for key, size in promised.items() if size > 10**8}
    assert len(large) >= 3
    for key, size in large.items():
        assert found[key] == pytest.approx(size, rel=0.01), key


def test_tokens_go_to_experts_and_back_once_forward_and_once_backward() -> None:
    # docs/meshes.md: 19.33 GB, without the further rounds that the contract counts
    assert moved(shipped("mixtral_8x7b_v5p_128", "v5p:4x4x4"))["all-to-all", "expert"] == pytest.approx(
        19.33e9, rel=1e-3
    )
    whole = shipped("mixtral_8x7b_v5p_128", "v5p:4x4x4", remat={})
    assert moved(whole)["all-to-all", "expert"] == pytest.approx(19.33e9 + 32 * 16384 * 4096 * 2, rel=1e-3)


# docs/meshes.md's table, in GB: gathered weights, scattered gradients, whole copies' gradients; activations over tensor
@pytest.mark.parametrize(
    ("mesh", "gathered", "scattered", "copies", "activations"),
    [
        (MeshConfig(fsdp=64), 28.97, 15.01, 0.0, 0.0),
        (MeshConfig(replica=4, fsdp=16), 28.97, 15.01, 2.01, 0.0),
        (MeshConfig(fsdp=16, tensor=4), 7.25, 3.75, 0.0, 192.2),
    ],
)
def test_meshes_move_what_their_table_says(
    mesh: MeshConfig, gathered: float, scattered: float, copies: float, activations: float
) -> None:
    run = shipped("llama3_8b_v5p_128", "v5p:4x4x4", remat={})
    found = moved(replace(run, candidate=replace(run.candidate, mesh=mesh)))
    assert found["all-gather", "fsdp"] == pytest.approx(gathered * 1e9, rel=0.01)
    assert found["reduce-scatter", "fsdp"] == pytest.approx(scattered * 1e9, rel=0.01)
    assert found["all-reduce", "replica"] == pytest.approx(copies * 1e9, rel=0.01)
    over_tensor = found["all-gather", "tensor"] + found["reduce-scatter", "tensor"]
    assert over_tensor == pytest.approx(activations * 1e9, rel=0.03)


def test_micro_batches_gather_the_weights_as_often() -> None:
    run = shipped("llama3_8b_v5p_128", "v5p:4x4x4")
    two = replace(run, candidate=replace(run.candidate, grad_accum=2))
    assert moved(two)["all-gather", "fsdp"] == 2 * moved(run)["all-gather", "fsdp"]
    assert flops(two.model, two.train, two.candidate, run.topology.chip) == flops(
        run.model, run.train, run.candidate, run.topology.chip
    )


def test_parts_of_the_vocabulary_cost_the_logits_once_more() -> None:
    run = shipped("llama3_8b_v5p_128", "v5p:4x4x4")
    parts = replace(run.candidate, loss_chunks=16)
    more = (
        flops(run.model, run.train, parts, run.topology.chip)[0]
        - flops(run.model, run.train, run.candidate, run.topology.chip)[0]
    )
    assert more == pytest.approx(2 * 16384 * 4096 * 128256)


def test_what_is_offloaded_crosses_the_link_to_the_host_twice() -> None:
    run = shipped("llama3_70b_v6e_256", "v6e:16x16", INPUT_OFFLOADED)
    assert link_s(run.model, run.train, run.candidate, run.topology) == pytest.approx(2 * 80 * 8192 * 8192 * 2 / 32e9)
    found = forecast(run.model, run.train, run.candidate, run.topology, run.network)
    assert found.step_s == found.compute_s + found.network_s + found.host_s
    kept = forecast(run.model, run.train, replace(run.candidate, remat={}), run.topology, run.network)
    assert kept.host_s == 0


# Of the link's time, what the compiled schedule waits for: 0 of 0.67 s, 0.14 of 1.07 s, 0.22 of 0.27 s.
@pytest.mark.parametrize(
    ("name", "topology", "words", "waits_s"),
    [
        ("llama3_70b_v6e_256", "v6e:16x16", (INPUT_OFFLOADED,), 0.0),
        ("llama3_8b_v5p_128", "v5p:4x4x4", (MIXED,), 0.135),
        ("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("train.pretrain.remat={input: offload}",), 0.219),
    ],
)
def test_copies_to_the_host_are_hidden_by_products_and_not_by_kernels(
    name: str, topology: str, words: tuple[str, ...], waits_s: float
) -> None:
    run = shipped(name, topology, *words)
    found = forecast(run.model, run.train, run.candidate, run.topology, run.network)
    assert found.host_s == pytest.approx(waits_s, abs=0.08)


def test_more_than_products_take_cannot_be_hidden_beside_them() -> None:
    run = shipped("llama3_8b_v5p_128", "v5p:4x4x4", MIXED)
    chip = run.topology.chip
    slow = replace(run.topology, chip=replace(chip, host_bytes_per_s=4e9))
    found = forecast(run.model, run.train, run.candidate, slow, run.network)
    products_s = found.product_flops / chip.bf16_flops / PRODUCT_SHARE
    assert found.host_s == pytest.approx(2 * 2 * 32 * 16384 * 4096 * 2 / 4e9 - products_s)


def test_in_a_ring_keys_go_round_and_are_not_gathered() -> None:
    name, topology = "llama3_8b_128k_v5p_128", "v5p:4x4x4"
    ring, whole = moved(shipped(name, topology, "model.context_attention=ring")), moved(shipped(name, topology))
    # two passes of 32 layers over the keys and values of a row, which the contract has beside the weights
    keys = 2 * 32 * 131072 * 2 * 8 * 128 * 2
    assert whole["all-gather", "context"] - ring["all-gather", "context"] == pytest.approx(keys)
    assert ring["collective-permute", "context"] > 0


def test_a_norm_behind_a_branch_needs_the_branchs_product_again() -> None:
    run = shipped("llama3_8b_v5p_128", "v5p:4x4x4")
    post = run.model.model_copy(update={"norm_position": "sandwich"})
    more = (
        flops(post, run.train, run.candidate, run.topology.chip)[0]
        - flops(run.model, run.train, run.candidate, run.topology.chip)[0]
    )
    assert more == pytest.approx(2 * 16384 * 32 * 4096 * (4096 + 14336))
