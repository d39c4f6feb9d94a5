"""`docs/fit.md`: which shipped model fits where and how fast it would be, by the compiler. One command makes it:

    uv run --extra tpu --extra gpu-compiler python benchmarks/fit.py docs/fit.md [training | post-training | decoding]

Each line is a plan of the real train step, or of the engine's real programs, with the date of its figures; of one
table, if it is named, and the other's lines stay as they are. The page is written after every line, and has the lines
before it for those to come. What the compiler makes is kept, so a run that is stopped goes on where it was. A line
takes the compiler 1 to 10 minutes, so all of them three hours when all is new; seconds where no program has changed.
"""

import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console

from benchmarks.fit_page import Cells, page, row, row_of
from lifecycle.core.progress import Progress, Silent
from lifecycle.model.config import ModelConfig, WeightFormat
from lifecycle.model.counts import num_active_params, num_params
from lifecycle.parallel.axes import MeshConfig
from lifecycle.planning.estimate.budget import InferenceBudget, TrainingBudget
from lifecycle.planning.programs.plan import ProgramPlan, plan_engine, plan_stage, plan_train_step
from lifecycle.planning.run_file import StepConfig, read_step
from lifecycle.planning.search.candidates import mesh_name
from lifecycle.planning.topology import parse_topology, prepare
from lifecycle.rl.config import RolloutConfig
from lifecycle.training.config import TrainConfig


@dataclass(frozen=True)
class FitLine:
    """One line of the page: a shipped run config with changes, on a topology. One of them may be `model=PRESET`."""

    config: str
    topology: str
    changes: tuple[str, ...] = ()
    stage: str | None = None  # None: the first one

    def step(self, folder: Path) -> StepConfig:
        """The stage's step, with the run configs in `folder`."""
        return read_step(folder / f"{self.config}.yaml", self.changes, self.stage)

    @property
    def name(self) -> str:
        """The preset, if the run is given one that is not its own; else the run."""
        presets = [change.removeprefix("model=") for change in self.changes if change.startswith("model=")]
        return presets[-1] if presets else self.config


OFFLOADED = "train.pretrain.remat={input: offload}"


def _sharded(
    config: str, topology: str, devices: int, rows_per_device: int, *changes: str, replica: int = 1, expert: int = 1
) -> FitLine:
    """A line whose mesh is `fsdp` over what copies and experts leave of the devices, with so many rows a device."""
    axes = {"replica": replica, "fsdp": devices // replica // expert, "expert": expert}
    mesh = (f"mesh.{axis}={size}" for axis, size in axes.items())
    batch = (f"train.pretrain.global_batch_size={devices * rows_per_device}", "train.pretrain.grad_accum=1")
    return FitLine(config, topology, (*mesh, *batch, *changes))


def _preset(preset: str, topology: str, devices: int, rows_per_device: int = 1, seq_len: int = 8192) -> FitLine:
    """A dense preset in place of the 8B run's model, with `fsdp` over everything and attention's results kept."""
    keeps = "train.pretrain.remat={k: save, v: save, attention_out: save}"
    changes = (f"model={preset}", f"train.pretrain.seq_len={seq_len}", keeps)
    return _sharded("llama3_8b_v6e_256", topology, devices, rows_per_device, *changes)


LINES = (
    FitLine("llama3_8b_v5p_128", "v5p:4x4x4"),
    _sharded("llama3_8b_v5p_128", "v5p:8x8x8", 512, 2),
    # with fsdp over all 4,096 a device's part of a weight is one column: a tenth more cycles (docs/log.md)
    _sharded("llama3_8b_v5p_128", "v5p:16x16x16", 4096, 2, replica=64),
    FitLine("llama3_8b_v5p_128", "v5p:4x4x4*2", ("mesh.replica=2", "train.pretrain.global_batch_size=256")),
    _sharded("llama3_8b_v5p_128", "tpu7x:2x4x4", 64, 2),
    FitLine("llama3_8b_v6e_256", "v6e:16x16"),
    FitLine("llama3_8b_128k_v5p_128", "v5p:4x4x4"),
    FitLine("llama3_70b_v6e_256", "v6e:16x16"),
    _sharded("llama3_8b_v5p_128", "v5p:8x8x8", 512, 1, "model=llama3_1_405b", "train.pretrain.remat={}"),
    _sharded("llama3_8b_v5p_128", "v5p:4x4x4", 64, 1, "model=gemma3_27b"),
    FitLine("mixtral_8x7b_v5p_128", "v5p:4x4x4"),
    FitLine("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("model=qwen3_30b_a3b",)),
    FitLine("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("model=gpt_oss_20b",)),
    _sharded("mixtral_8x7b_v5p_128", "v5p:4x4x4", 64, 2, "model=gpt_oss_120b", OFFLOADED, expert=16),
    _sharded("mixtral_8x7b_v5p_128", "v5p:8x8x8", 512, 2, "model=qwen3_235b_a22b", OFFLOADED, expert=32),
    FitLine("deepseek_v3_v5p_1024", "v5p:8x8x8"),
    FitLine("llama3_8b_h100_8", "h100:8"),
    FitLine("llama3_8b_h100_8", "h100:16", ("mesh.fsdp=16", "train.pretrain.grad_accum=8")),
    _preset("llama2_7b", "v5e:8x8", 64, seq_len=4096),
    _preset("mistral_7b", "v6e:8x8", 64),
    _preset("qwen2_5_7b", "v5e:8x8", 64),
    _preset("qwen3_8b", "v6e:8x8", 64),
    _preset("olmo2_7b", "v5p:2x4x4", 32, seq_len=4096),
    _preset("gemma2_9b", "v5p:2x4x4", 32),
    _preset("llama3_2_3b", "v6e:4x4", 16),
    _preset("smollm3_3b", "v6e:4x4", 16),
    _preset("gemma2_2b", "v5p:2x2x1", 4),
    _preset("smollm2_1_7b", "v6e:2x4", 8),
    _preset("llama3_2_1b", "v5e:4x4", 16),
    _preset("gemma3_1b", "v5e:4x4", 16),
    _preset("qwen3_0_6b", "v5e:2x4", 8),
    _preset("qwen2_5_0_5b", "v5e:2x2", 4),
    _preset("smollm2_360m", "v6e:1x1", 1, rows_per_device=2),
    _sharded("smollm2_135m", "v5e:1x1", 1, 4),
    _sharded("smollm2_135m", "v5e:4x4", 16, 4),
)

STAGE_LINES = (
    FitLine("llama3_8b_v5p_128", "v5p:4x4x4", stage="prefer"),
    FitLine("llama3_8b_grpo_v5p_128", "v5p:4x4x4", stage="maths"),
    FitLine("llama3_70b_lora_v6e_16", "v6e:4x4", stage="chat"),
)


@dataclass(frozen=True)
class DecodeLine:
    """A line of decoding: a shipped run's model, or a preset in its place, served by so many slots on a mesh that fills
    the topology; the model's weights in a format, None: bfloat16."""

    config: str
    topology: str
    mesh: MeshConfig
    weights: WeightFormat | None = None
    num_slots: int = 64
    max_seq_len: int = 8192
    preset: str | None = None

    def model(self, folder: Path) -> ModelConfig:
        """The model, with the run configs in `folder`."""
        return read_step(folder / f"{self.config}.yaml", [f"model={self.preset}"] if self.preset else []).model


def _both(config: str, topology: str, mesh: MeshConfig) -> tuple[DecodeLine, DecodeLine]:
    """Lines of bfloat16 and int8 weights."""
    return DecodeLine(config, topology, mesh), DecodeLine(config, topology, mesh, "int8")


OVER_EXPERTS = MeshConfig(expert=4, tensor=16)  # of the meshes of 64 the fastest (docs/log.md)
DECODE_LINES = (
    *_both("llama3_8b_v5p_128", "v5e:2x4", MeshConfig(tensor=8)),
    *_both("llama3_8b_v5p_128", "v6e:2x4", MeshConfig(tensor=8)),
    DecodeLine("llama3_8b_v6e_256", "v6e:2x2", MeshConfig(tensor=4), None, 64, 2048, "qwen3_8b"),
    # 8 key heads are the most that `tensor` cuts; hidden states are cut over `fsdp` (model/cut_hidden.py)
    DecodeLine("llama3_70b_v6e_256", "v5e:4x4", MeshConfig(fsdp=2, tensor=8), None, 64, 4096),
    DecodeLine("llama3_70b_v6e_256", "v5e:4x4", MeshConfig(fsdp=2, tensor=8), "int8"),
    *_both("mixtral_8x7b_v5p_128", "v6e:2x4", MeshConfig(tensor=8)),
    *_both("deepseek_v3_v5p_1024", "v6e:8x8", OVER_EXPERTS),
)


def make(folder: Path, out: Path, console: Console, table: str | None = None) -> None:
    """Plans every line, or those of a table, and writes the page."""
    prepare()
    progress = ConsoleProgress(console)
    before = out.read_text(encoding="utf-8").splitlines() if out.exists() else []
    trained = {_train_cells(line, folder): line for line in LINES}
    staged = {_stage_cells(line, folder): line for line in STAGE_LINES}
    decoded = {_decode_cells(line, folder): line for line in DECODE_LINES}
    rows = {cells: row_of(cells, before) for cells in (*trained, *staged, *decoded)}

    def put(cells: Cells, results: Cells) -> None:
        rows[cells] = row((*cells, *results, datetime.now(UTC).date().isoformat()))
        tables = [[rows[cells] for cells in lines if rows[cells]] for lines in (trained, staged, decoded)]
        out.write_text(page(*tables), encoding="utf-8")

    for cells, line in trained.items() if table in (None, "training") else ():
        progress.note(f"{line.name} on {line.topology}")
        put(cells, _trained(line, folder, progress))
    for cells, line in staged.items() if table in (None, "post-training") else ():
        progress.note(f"{line.stage} of {line.name} on {line.topology}")
        put(cells, _staged(line, folder, progress))
    for names in (["decode"], ["prefill", "decode"]):  # chunks last: without one, a line has an empty cell
        for cells, line in decoded.items() if table in (None, "decoding") else ():
            progress.note(f"{names[0]} of {line.preset or line.config} on {line.topology}")
            put(cells, _decoded(line, folder, progress, names))


class ConsoleProgress(Silent):
    """Prints what goes on, a line each."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def start(self, stage: str, total: int | None = None) -> None:
        del total
        self.note(stage)

    def note(self, text: str) -> None:
        self._console.print(text, highlight=False)


def _train_cells(line: FitLine, folder: Path) -> Cells:
    """What says which line it is."""
    config, topology = line.step(folder), parse_topology(line.topology)
    train = config.train
    keeps = "everything" if train.remat is None else " ".join(train.remat) or "nothing"
    chips = topology.name, str(topology.num_chips)
    return (line.name, _size(config.model), *chips, mesh_name(config.mesh), _rows(train), keeps)


def _trained(line: FitLine, folder: Path, progress: Progress) -> Cells:
    config, topology = line.step(folder), parse_topology(line.topology)
    sizes = config.model, config.train, config.mesh, topology, config.section
    return _results(plan_train_step(*sizes, is_tuned=True, progress=progress), topology.chip.hbm_bytes)


def _stage_cells(line: FitLine, folder: Path) -> Cells:
    """What says which line it is."""
    config, topology = line.step(folder), parse_topology(line.topology)
    train = config.train
    slots = ""
    if isinstance(train, RolloutConfig):
        slots = f"{train.num_slots} x {train.max_prompt_tokens + train.max_completion_tokens}"
    return (
        line.name,
        line.stage or "",
        topology.name,
        str(topology.num_chips),
        mesh_name(config.mesh),
        _rows(train),
        slots,
    )


def _staged(line: FitLine, folder: Path, progress: Progress) -> Cells:
    config, topology = line.step(folder), parse_topology(line.topology)
    sizes = config.model, config.train, config.mesh, topology, config.section
    return _stage_results([*plan_stage(*sizes, is_tuned=True, progress=progress)], topology.chip.hbm_bytes)


def _stage_results(plans: list[ProgramPlan], hbm_bytes: int) -> Cells:
    needed = max(plan.needs_bytes for plan in plans)
    memory = f"{needed / 1e9:,.1f}", f"{needed / hbm_bytes:.0%}"
    found = {plan.kind: plan.estimate for plan in plans if plan.fits and plan.estimate is not None}
    budget = plans[0].budget
    if len(found) < len(plans) or not isinstance(budget, TrainingBudget):
        return (*memory, "does not fit", "", "", "", "", "", "")
    of_rollouts = [found.get(kind) for kind in ("scoring", "prefill", "decode")]
    ms = ["" if estimate is None else f"{estimate.step_s * 1e3:,.1f}" for estimate in of_rollouts]
    whole_s = sum(plan.runs_per_step * found[plan.kind].step_s for plan in plans)
    update = f"{found['step'].cycles / 1e6:,.0f}", f"{found['step'].step_s * 1e3:,.0f}", f"{budget.mfu:.0%}"
    return (*memory, *update, *ms, f"{whole_s:,.1f}")


def _results(plan: ProgramPlan, hbm_bytes: int) -> Cells:
    memory = f"{plan.needs_bytes / 1e9:,.1f}", f"{plan.needs_bytes / hbm_bytes:.0%}"
    budget = plan.budget
    if not plan.fits or plan.estimate is None or not isinstance(budget, TrainingBudget):
        return (*memory, "does not fit", "", "", "")
    price = "" if budget.money is None else f"{budget.money / budget.tokens * 1e9:,.0f}"
    speed = f"{plan.estimate.step_s * 1e3:,.0f}", f"{budget.tokens_per_s_per_chip:,.0f}", f"{budget.mfu:.0%}"
    return (*memory, *speed, price)


def _decode_cells(line: DecodeLine, folder: Path) -> Cells:
    """What says which line it is."""
    topology = parse_topology(line.topology)
    slots = f"{line.num_slots} x {line.max_seq_len}"
    chips = topology.name, str(topology.num_chips)
    size = _size(line.model(folder))
    return (line.preset or line.config, size, line.weights or "bfloat16", *chips, mesh_name(line.mesh), slots)


def _decoded(line: DecodeLine, folder: Path, progress: Progress, names: list[str]) -> Cells:
    """Of the programs `names`, the last of which is decode."""
    model, topology = line.model(folder), parse_topology(line.topology)
    sizes = line.num_slots, line.max_seq_len, line.mesh
    options = {"is_tuned": True, "progress": progress, "names": names, "weights": line.weights}
    return _decode_results([*plan_engine(model, *sizes, topology, **options)], topology.chip.hbm_bytes)


def _decode_results(plans: list[ProgramPlan], hbm_bytes: int) -> Cells:
    needed = max(plan.needs_bytes for plan in plans)
    memory = f"{needed / 1e9:,.1f}", f"{needed / hbm_bytes:.0%}"
    budgets = [plan.budget for plan in plans if plan.fits and isinstance(plan.budget, InferenceBudget)]
    if len(budgets) < len(plans):
        return (*memory, "does not fit", "", "", "", "")
    *of_chunk, budget = budgets
    price = "" if budget.usd_per_million_tokens is None else f"{budget.usd_per_million_tokens:,.2f}"
    speed = f"{budget.ms_per_run:,.1f}", f"{budget.tokens_per_s_per_chip:,.0f}", f"{budget.hbm_share:.0%}"
    return (*memory, *speed, price, "".join(f"{prefill.ms_per_run:,.1f}" for prefill in of_chunk))


def _rows(train: TrainConfig) -> str:
    rows = f"{train.global_batch_size} x {train.seq_len}"
    return f"{rows} in {train.grad_accum}" if train.grad_accum > 1 else rows


def _size(model: ModelConfig) -> str:
    total, active = num_params(model), num_active_params(model)
    return f"{total / 1e9:,.2f} B" + (f" ({active / 1e9:,.1f} B active)" if active < total else "")


if __name__ == "__main__":
    out, *tables = sys.argv[1:] or ["docs/fit.md"]
    make(Path("configs"), Path(out), Console(), *tables)
