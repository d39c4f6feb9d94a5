"""Plans a program: compiles it for a topology or takes its compilation from the cache, and measures it."""

from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from lifecycle.core.platform import compiler_options
from lifecycle.core.progress import Progress
from lifecycle.model.config import CacheFormat, ModelConfig, WeightFormat
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.compiled.collectives import collectives
from lifecycle.planning.compiled.compilation import Compilation
from lifecycle.planning.compiled.hlo import parse_module
from lifecycle.planning.compiled.host import host_moves
from lifecycle.planning.compiled.kernels import kernel_work
from lifecycle.planning.compiled.memory import DeviceMemory, bytes_by_part, device_memory
from lifecycle.planning.compiled.program import Program, Spender
from lifecycle.planning.compiled.roofline import roofline
from lifecycle.planning.estimate.budget import InferenceBudget, TrainingBudget, inference_budget, training_budget
from lifecycle.planning.estimate.network import network_of
from lifecycle.planning.estimate.step import StepEstimate, estimate_step
from lifecycle.planning.programs.compiler import compile_program, in_thread
from lifecycle.planning.programs.kept import CompilationCache, compilation_key, versions
from lifecycle.planning.programs.lowering import Kind, PlannedProgram, engine_programs, train_program
from lifecycle.planning.programs.rollouts import answering_programs, rollout_programs
from lifecycle.planning.topology import Topology, mesh_of_one, mesh_over
from lifecycle.rl.config import RolloutConfig
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import DistillationConfig

if TYPE_CHECKING:
    from jax.sharding import Mesh


@dataclass(frozen=True)
class ProgramPlan:
    """The plan of a program on a topology.

    For a program that the compiler refuses, only sizes are known: `needs_bytes`, and `known_bytes` and `beside_bytes`,
    the parts of it that parameters and other persistent arrays take.
    """

    topology: str
    mesh: dict[str, int]
    program: str
    section: str  # the section of the run's file with the program's settings
    options: dict[str, str]
    versions: dict[str, str]
    fits: bool
    needs_bytes: int  # with what lies beside it
    memory: DeviceMemory | None
    estimate: StepEstimate | None
    spenders: tuple[Spender, ...]
    compile_s: float
    budget: TrainingBudget | InferenceBudget | None
    known_bytes: Mapping[str, int]  # per device, by part of the arguments
    beside_bytes: Mapping[str, int] = field(default_factory=dict)  # per device, what lies there while it runs
    kind: Kind = "step"
    runs_per_step: float = 1.0

    def plain(self) -> dict[str, Any]:
        """The plan as JSON-ready values."""
        return asdict(self)


def plan_train_step(
    model: ModelConfig,
    train: TrainConfig,
    mesh: MeshConfig,
    topology: Topology,
    section: str,
    is_tuned: bool,
    progress: Progress,
    others: Mapping[str, ModelConfig] | None = None,
) -> ProgramPlan:
    """The plan of a training stage's step on a mesh over the topology; `others`: the models that it runs beside its
    own. Raises `ConfigError` if mesh and topology do not match."""
    program = train_program(model, train, mesh_over(topology, mesh), section, others)
    return plan_program(program, topology, is_tuned, progress)


def plan_stage(
    model: ModelConfig,
    train: TrainConfig,
    mesh: MeshConfig,
    topology: Topology,
    section: str,
    is_tuned: bool,
    progress: Progress,
    others: Mapping[str, ModelConfig] | None = None,
    reward: ModelConfig | None = None,
) -> Iterator[ProgramPlan]:
    """Plans of all programs that a training stage's steps run, each as soon as it is ready; `others`: the models that
    they run beside the stage's own; `reward`: the model that scores rollouts, if one does. Raises `ConfigError` as
    `plan_train_step`."""
    if isinstance(train, RolloutConfig):
        programs = rollout_programs(model, train, mesh_over(topology, mesh), section, reward)
    elif isinstance(train, DistillationConfig) and train.samples:
        programs = answering_programs(model, train, mesh_over(topology, mesh), section, others or {})
    else:
        yield plan_train_step(model, train, mesh, topology, section, is_tuned, progress, others)
        return
    for program in programs:
        yield plan_program(program, topology, is_tuned, progress)


def plan_engine(
    model: ModelConfig,
    num_slots: int,
    max_seq_len: int,
    mesh: MeshConfig,
    topology: Topology,
    is_tuned: bool,
    progress: Progress,
    names: Collection[str] = ("prefill", "decode"),
    weights: WeightFormat | None = None,
    kv_cache: CacheFormat | None = None,
) -> Iterator[ProgramPlan]:
    """Plans of the engine's programs `names`, with weights and cache in a format, on a mesh over the topology, each as
    soon as it is ready.

    On a single chip with two devices, a mesh of one device uses the first. Raises `ConfigError` if mesh, topology and
    sizes do not match.
    """
    is_one = mesh.size == topology.num_chips == 1
    laid = mesh_of_one(topology) if is_one else mesh_over(topology, mesh, section="serve.mesh", axis="tensor")
    for program in engine_programs(model, num_slots, max_seq_len, laid, weights, kv_cache):
        if program.name in names:
            yield plan_program(program, topology, is_tuned, progress)


def plan_program(program: PlannedProgram, topology: Topology, is_tuned: bool, progress: Progress) -> ProgramPlan:
    """Lowers the program, compiles it unless its compilation is cached, and measures it.

    `is_tuned` selects, for a train step, the compiler options of training instead of the compiler's defaults.
    """
    mesh = program.mesh
    is_tuned = is_tuned and program.kind in ("step", "scoring")  # the engine compiles with the defaults
    tuned = compiler_options(mesh.devices.flat[0].device_kind) if is_tuned else {}
    options = {**tuned, **topology.compiler.options}
    compilation = _kept_or_compiled(program, topology, options, progress)
    known_bytes, beside_bytes = bytes_by_part(program.arguments()), bytes_by_part(program.beside())
    beside = sum(beside_bytes.values())
    memory, estimate, spenders, budget = None, None, (), None
    if compilation.module is not None:
        memory = device_memory(compilation, known_bytes, topology.chip, beside)
        estimate, spenders = measure(compilation.module, topology, mesh, program.work.attention_share)
        if program.kind in ("step", "scoring"):
            budget = training_budget(estimate, topology, program.work)
        else:
            budget = inference_budget(estimate, topology, program.work, known_bytes, mesh.size)
    return ProgramPlan(
        topology=topology.name,
        mesh=dict(mesh.shape),
        program=program.name,
        section=program.section,
        options=dict(options),
        versions=versions(topology.compiler),
        fits=memory is not None and memory.fits,
        needs_bytes=compilation.peak_bytes + beside,
        memory=memory,
        estimate=estimate,
        spenders=spenders,
        compile_s=compilation.compile_s,
        budget=budget,
        known_bytes=known_bytes,
        beside_bytes=beside_bytes,
        kind=program.kind,
        runs_per_step=program.runs_per_step,
    )


def _kept_or_compiled(
    program: PlannedProgram, topology: Topology, options: Mapping[str, str], progress: Progress
) -> Compilation:
    """The program's compilation, from the cache or compiled and cached."""
    progress.start(f"lowering {program.name} for {topology.name}")
    lowered = in_thread(program.lower, progress)
    cache, key = CompilationCache(), compilation_key(lowered, topology, program.mesh, options)
    compilation = cache.get(key)
    if compilation is None:
        progress.start(f"compiling {program.name} for {topology.name}")
        compilation = compile_program(lowered, options, topology.compiler, progress)
        cache.put(key, compilation)
    return compilation


def measure(
    module: str, topology: Topology, mesh: "Mesh", attention_share: float
) -> tuple[StepEstimate, tuple[Spender, ...]]:
    """The estimate for a compiled module's text, and the operations that take its cycles."""
    cost = None if topology.chip.is_tpu else roofline(topology.chip)
    program = Program(parse_module(module), cost)
    network = network_of(topology, mesh)
    sent = collectives(program, network.mesh)
    is_exchanged = any(c.kind == "ragged-all-to-all" for c in sent)
    kernels = kernel_work(program.kernels, attention_share, is_exchanged)
    step = estimate_step(program, [*sent, *host_moves(program)], kernels, network, topology)
    return step, tuple(program.spenders())
