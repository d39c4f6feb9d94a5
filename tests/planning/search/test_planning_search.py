"""The search without the TPU compiler: what it looks at, in what order, and what it says of everything else."""

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from jax.errors import JaxRuntimeError

from lifecycle.cli.plan_search import changed
from lifecycle.core.config import ConfigError
from lifecycle.model.config import Remat
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.programs.plan import ProgramPlan
from lifecycle.planning.search import candidates, reasons, search
from lifecycle.planning.search.candidates import Candidate
from lifecycle.planning.search.footprint import Footprint
from lifecycle.planning.search.forecast import Forecast
from lifecycle.planning.topology import Topology, parse_topology
from lifecycle.stages.config import RunConfig
from tests.planning.fakes import CUBE, fake_mesh, program_plan
from tests.planning.shipped import load, pretraining

type Run = Callable[..., reasons.SearchResult]


def checked(config: RunConfig) -> candidates.Check:
    def check(candidate: Candidate) -> None:
        changed(config, "pretrain", candidate)

    return check


def proposed(config: RunConfig, mesh: MeshConfig, topology: Topology = CUBE) -> list[Candidate]:
    return candidates.candidates(mesh, topology, config.model, pretraining(config), checked(config))


def test_meshes_are_all_of_the_topology_and_whole_copies_lie_across_slices() -> None:
    config = load("llama3_8b_v5p_128")
    found = list(candidates.meshes(CUBE, config.model, pretraining(config).seq_len))
    assert MeshConfig(fsdp=64) in found
    assert MeshConfig(fsdp=16, tensor=4) in found
    assert all(mesh.size == 64 and mesh.expert == 1 for mesh in found)
    assert len({mesh.model_dump_json() for mesh in found}) == len(found)
    two = list(candidates.meshes(parse_topology("v5p:4x4x4*2"), config.model, pretraining(config).seq_len))
    assert two
    assert all(mesh.replica % 2 == 0 and mesh.size == 128 for mesh in two)
    mixtral = load("mixtral_8x7b_v5p_128")
    assert {mesh.expert for mesh in candidates.meshes(CUBE, mixtral.model, 4096)} == {1, 2, 4, 8}


def test_micro_batches_are_those_that_the_run_could_have() -> None:
    config = load("llama3_8b_v5p_128")
    assert {c.grad_accum for c in proposed(config, MeshConfig(fsdp=64))} == {1, 2}
    with pytest.raises(ConfigError, match="num_kv_heads"):
        proposed(config, MeshConfig(fsdp=4, tensor=16))


@pytest.mark.parametrize(
    ("words", "mesh", "says"),
    [
        (
            ("train.pretrain.seq_len=8190",),
            MeshConfig(fsdp=32, context=2),
            "train.pretrain.seq_len=8190 is not",
        ),
        (("model.vocab_size=128257",), MeshConfig(fsdp=32, tensor=2), "vocab_size"),
        (("train.sft.global_batch_size=32",), MeshConfig(fsdp=64), "train.sft.global_batch_size"),
    ],
)
def test_a_mesh_that_no_run_could_have_has_the_configs_reason(
    words: tuple[str, ...], mesh: MeshConfig, says: str
) -> None:
    config = load("llama3_8b_v5p_128", "mesh.fsdp=1", *words)
    with pytest.raises(ConfigError, match=says) as refused:
        proposed(config, mesh)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "topology"),
    [
        ("llama3_8b_v5p_128", "v5p:4x4x4"),
        ("llama3_8b_v6e_256", "v6e:16x16"),
        ("llama3_70b_v6e_256", "v6e:16x16"),
        ("mixtral_8x7b_v5p_128", "v5p:4x4x4"),
        ("deepseek_v3_v5p_1024", "v5p:8x8x8"),
    ],
)
def test_the_shipped_run_is_among_its_own_candidates(name: str, topology: str) -> None:
    config, where = load(name), parse_topology(topology)
    assert config.mesh in list(candidates.meshes(where, config.model, pretraining(config).seq_len))
    own = (pretraining(config).grad_accum, pretraining(config).remat, pretraining(config).loss_chunks)
    found = proposed(config, config.mesh, where)
    assert own in [(c.grad_accum, c.remat, c.loss_chunks) for c in found]
    sized = [(0.0, c) for c in found]  # all fit
    assert own in [(c.grad_accum, c.remat, c.loss_chunks) for _, c in search._proposed(sized, 1.0, own[2])]


def test_more_parts_of_the_vocabulary_are_proposed_where_it_does_not_fit_whole() -> None:
    one, parts = (Candidate(MeshConfig(), 1, "nothing", {}, chunks) for chunks in (1, candidates.LOSS_CHUNKS))
    assert search._proposed([(2.0, one), (1.0, parts)], 1.5, own_chunks=1) == [(2.0, one), (1.0, parts)]
    assert search._proposed([(1.2, one), (1.0, parts)], 1.5, own_chunks=1) == [(1.2, one)]


def test_without_a_figure_for_the_hosts_link_nothing_is_offloaded_and_a_note_says_so() -> None:
    config, ironwood = load("llama3_8b_v5p_128"), parse_topology("tpu7x:2x4x4")
    assert not any(c.is_offloading for c in proposed(config, MeshConfig(fsdp=64), ironwood))
    assert any("tpu7x" in note for note in reasons.notes(ironwood))
    assert any(c.is_offloading for c in proposed(config, MeshConfig(fsdp=64)))
    assert reasons.notes(CUBE) == (reasons.NO_STAGES,)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    """A search of a shipped run over the cube whose compiler is a function of the candidate."""

    monkeypatch.setattr(search, "mesh_over", fake_mesh)

    def found(
        compile_one: Any,
        *words: str,
        name: str = "llama3_8b_v5p_128",
        most: int = 3,
        on_compiled: Any = lambda _: None,
    ) -> reasons.SearchResult:
        config = load(name, *words)
        check = checked(config)
        return search.search(
            CUBE, config.model, config.mesh, pretraining(config), check, compile_one, on_compiled, most
        )

    return found


def test_the_pick_is_the_fastest_that_fits_and_everything_else_has_a_reason(run: Run) -> None:
    answers = iter(
        [program_plan(3.0), program_plan(fits=False, needs=200 * 10**9), program_plan(1.0), program_plan(2.0)]
    )
    found = run(lambda _: next(answers))
    assert [c.plan.fits for c in found.compiled] == [True, False, True, True]
    assert found.pick is found.compiled[2]
    reason_of = {r.name: r for r in found.rejected}
    slower, large = (reason_of[found.compiled[i].candidate.name] for i in (0, 1))
    assert (slower.kind, slower.reason) == ("compiled: slower", "3.00 times the pick's step")
    assert large.kind == "compiler: no memory"
    assert large.reason.startswith("needs 200.0 GB; ")
    assert len(found.rejected) + 1 == found.num_candidates == len(reason_of) + 1
    kinds = Counter(r.kind for r in found.rejected)
    assert set(kinds) == {
        "compiled: slower", "compiler: no memory", "slower by arithmetic", "memory by arithmetic", "cannot be cut",
    }  # fmt: skip
    assert kinds["slower by arithmetic"] > kinds["memory by arithmetic"] > 0
    json.dumps(found.plain())


def test_the_best_of_each_kind_come_first(run: Run) -> None:
    found = run(lambda _: program_plan())

    def firsts(kind: str) -> list[float]:
        return [float(r.reason.split()[0].replace(",", "")) for r in found.rejected if r.kind == kind]

    for kind in ("slower by arithmetic", "memory by arithmetic"):
        assert len(firsts(kind)) > 1
        assert firsts(kind) == sorted(firsts(kind))


def test_candidates_are_compiled_in_the_order_of_their_arithmetic(run: Run) -> None:
    found = run(lambda _: program_plan())
    expected = [c.forecast.step_s for c in found.compiled]
    assert expected == sorted(expected)
    assert len(expected) == 3


@pytest.mark.parametrize("error", [JaxRuntimeError("INTERNAL: Mosaic failed\nmore"), ValueError("no such tile\nmore")])
def test_a_candidate_that_the_compiler_fails_on_is_rejected_with_its_words_and_the_search_goes_on(
    run: Run, error: Exception
) -> None:
    answers: Any = iter([error, program_plan(2.0), program_plan(1.0), program_plan(3.0)])

    def compile_one(_: Candidate) -> ProgramPlan:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    found = run(compile_one)
    assert [c.plan.estimate and c.plan.estimate.step_s for c in found.compiled] == [2.0, 1.0, 3.0]
    failed = [r for r in found.rejected if r.kind == "compiler: error"]
    assert [r.reason for r in failed] == [str(error).splitlines()[0]]
    assert len(found.rejected) + 1 == found.num_candidates


def forecasted(step_s: float) -> Forecast:
    return Forecast(Footprint(1.0, 1.0, 1.0), 1.0, 1.0, step_s, 0.0, 0.0)


def test_half_of_the_compiled_are_the_best_and_the_others_the_best_of_other_kinds_that_may_be_as_fast() -> None:
    whole: Remat = {"q": "save"}

    def one(policy: str, remat: Remat, **mesh: int) -> Candidate:
        return Candidate(MeshConfig(**mesh), 1, policy, remat)

    best = one("whole", whole, fsdp=64)
    copies = [one("whole", whole, replica=n, fsdp=64 // n) for n in (2, 4, 8)]
    behind = [one("none", {}, fsdp=64), one("none", {}, replica=16, fsdp=4)]
    wide = one("whole", whole, fsdp=32, tensor=2)
    other = one("other", {"k": "save"}, fsdp=64)
    slow = one("slow", {"v": "save"}, fsdp=64)
    order = [best, *copies, *behind, wide, other, slow]
    times = [1.0, 1.01, 1.02, 1.03, 1.04, 1.05, 1.06, 1.07, 1.2]
    ranked = [(candidate, forecasted(s)) for candidate, s in zip(order, times, strict=True)]
    turn = [candidate for candidate, _ in search.in_turn(ranked, 4)]
    assert turn == [best, copies[0], wide, other, *copies[1:], *behind, slow]


def test_what_has_more_at_hand_goes_first_and_what_it_leaves_behind_comes_when_that_does_not_fit() -> None:
    both: tuple[Remat, ...] = ({"q": "save"}, {})
    more, less = (Candidate(MeshConfig(fsdp=64), 1, str(remat), remat) for remat in both)
    ranked = [(more, forecasted(1.0)), (less, forecasted(1.1))]
    assert search.in_turn(ranked, 4) == ranked


@pytest.mark.parametrize(
    ("name", "topology"), [("llama3_8b_v5p_128", "v5p:4x4x4"), ("mixtral_8x7b_v5p_128", "v5p:4x4x4")]
)
def test_where_everything_fits_saving_it_on_the_shipped_mesh_is_compiled_first(
    run: Run, name: str, topology: str
) -> None:
    tried: list[Candidate] = []

    def compile_one(candidate: Candidate) -> ProgramPlan:
        tried.append(candidate)
        return program_plan()

    run(compile_one, name=name, most=4)
    config = load(name)
    assert (tried[0].mesh, tried[0].policy) == (config.mesh, "all products")
    assert not any(candidate.is_offloading for candidate in tried)


def test_an_error_of_our_own_ends_a_search(run: Run) -> None:
    def compile_one(_: Candidate) -> ProgramPlan:
        raise AssertionError("ours")

    with pytest.raises(AssertionError, match="ours"):
        run(compile_one)


def test_a_search_in_which_nothing_fits_ends_and_says_what_is_left_to_change(run: Run) -> None:
    found = run(lambda _: program_plan(fits=False, needs=110 * 10**9))
    assert found.pick is None
    assert len(found.compiled) == 6
    assert len(found.rejected) == found.num_candidates
    nearest, mend = reasons.why(found, "train.pretrain")
    assert "needs 110.0 GB" in nearest
    assert "more devices" in mend and "train.pretrain.seq_len" in mend
    assert "global_batch_size" not in mend


def test_where_arithmetic_refuses_everything_nothing_is_compiled(run: Run) -> None:
    found = run(lambda _: pytest.fail("compiled"), "model=llama3_1_405b", "train.pretrain.seq_len=131072")
    assert (found.pick, found.compiled) == (None, ())
    assert "memory by arithmetic" in reasons.why(found, "train.pretrain")[0]


def test_what_the_run_itself_says_is_compiled_beside_the_best(run: Run) -> None:
    tried: list[Candidate] = []

    def compile_one(candidate: Candidate) -> ProgramPlan:
        tried.append(candidate)
        return program_plan(2.0 if candidate.policy == "nothing" else 1.0)

    found = run(compile_one, "train.pretrain.remat={}")
    assert [c.policy == "nothing" for c in tried] == [False, False, False, True]
    assert found.own is found.compiled[-1]
    own = "The run's own setting, fsdp=64, grad_accum=1, keeps nothing: 2,000.0 ms, 2.00 times the pick's step."
    assert reasons.why(found, "train.pretrain")[2] == own
    assert len(found.rejected) + 1 == found.num_candidates

    found = run(lambda c: program_plan(fits=c.policy != "nothing", needs=200 * 10**9), "train.pretrain.remat={}")
    assert "does not fit: it needs 200.0 GB" in reasons.why(found, "train.pretrain")[2]

    best = run(lambda _: program_plan())
    assert best.own is best.pick and len(best.compiled) == 3
    assert reasons.why(best, "train.pretrain")[2] == "It is the run's own setting."


def test_why_names_memory_traffic_and_the_terms_that_differ(run: Run) -> None:
    gb = 10**9
    pick = program_plan(1.0, needs=60 * gb, sent=40 * gb, exposed_s=0.25)
    second = program_plan(1.5, needs=30 * gb, sent=10 * gb)
    last = program_plan(4.0, needs=20 * gb, sent=10 * gb)
    answers = iter([second, pick, last])
    found = run(lambda _: next(answers))
    assert found.pick is not None and found.pick.plan is pick
    fastest, takes, own, next_best, terms = reasons.why(found, "train.pretrain")
    assert "1,250.0 ms" in fastest
    assert "60.0 GB a device and leaves 42.8 GB free" in takes and "collectives move 40.0 GB" in takes
    assert "own setting, fsdp=64" in own and "1,500.0 ms, 1.20 times the pick's step" in own
    assert "1,500.0 ms" in next_best and "30.0 GB" in next_best and "10.0 GB" in next_best
    assert "spends 500.0 ms less computing, 250.0 ms more waiting for the network" in terms


def test_what_is_known_when_a_search_is_stopped_was_told(run: Run) -> None:
    heard: list[Any] = []
    answers = iter([program_plan()])

    def compile_one(_: Candidate) -> ProgramPlan:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    with pytest.raises(KeyboardInterrupt):
        run(compile_one, on_compiled=heard.append)
    assert len(heard) == 1
