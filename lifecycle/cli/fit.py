"""`docs/fit.md`: which shipped model fits where and how fast it would be, by the compiler. One command makes it:

    uv run python -m lifecycle.cli.fit docs/fit.md

Each row is a plan of the real train step. Plans are kept, so a run that is stopped goes on where it was, and the page
is written anew after every row. A row takes the compiler 1 to 10 minutes, so all of them two hours when all is new;
nothing where nothing has changed.
"""

import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from lifecycle.cli.display import progress_on
from lifecycle.core.config import load_config
from lifecycle.core.progress import Progress
from lifecycle.model.config import num_active_params, num_params
from lifecycle.planning.estimate.budget import TrainingBudget
from lifecycle.planning.programs.kept import versions
from lifecycle.planning.programs.plan import ProgramPlan, plan_train_step
from lifecycle.planning.search.candidates import mesh_name
from lifecycle.planning.topology import parse_topology, prepare
from lifecycle.stages.config import RunConfig
from lifecycle.training.config import CrossEntropyConfig

COLUMNS = (
    "model", "parameters", "topology", "chips", "mesh", "rows x positions", "keeps", "peak GB per device", "of it",
    "step ms", "tokens/s per chip", "MFU", "USD per 10^9 tokens",
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """One line of the page: a shipped run config with changes, on a topology. One of them may be `model=PRESET`."""

    config: str
    topology: str
    changes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The preset, if the run is given one that is not its own; else the run."""
        presets = [change.removeprefix("model=") for change in self.changes if change.startswith("model=")]
        return presets[-1] if presets else self.config


STAGES = ("pretrain", "sft", "prefer")  # a run's later stages are on the same mesh
OFFLOADED = "train.pretrain.remat={input: offload}"


def _sharded(
    config: str, topology: str, devices: int, rows_per_device: int, *changes: str, replica: int = 1, expert: int = 1
) -> Row:
    """A row whose mesh is `fsdp` over what copies and experts leave of the devices, with so many rows a device."""
    axes = {"replica": replica, "fsdp": devices // replica // expert, "expert": expert}
    mesh = (f"mesh.{axis}={size}" for axis, size in axes.items())
    fields = (f"global_batch_size={devices * rows_per_device}", "grad_accum=1")
    batches = (f"train.{stage}.{field}" for stage in STAGES for field in fields)
    return Row(config, topology, (*mesh, *batches, *changes))


def _preset(preset: str, topology: str, devices: int, rows_per_device: int = 1, seq_len: int = 8192) -> Row:
    """A dense preset in place of the 8B run's model, with `fsdp` over everything and attention's results kept."""
    lengths = (f"train.{stage}.seq_len={seq_len}" for stage in STAGES)
    return _sharded("llama3_8b_v6e_256", topology, devices, rows_per_device, f"model={preset}", *lengths)


ROWS = (
    Row("llama3_8b_v5p_128", "v5p:4x4x4"),
    _sharded("llama3_8b_v5p_128", "v5p:8x8x8", 512, 2),
    # with fsdp over all 4,096 a device's part of a weight is one column: a tenth more cycles (docs/log.md)
    _sharded("llama3_8b_v5p_128", "v5p:16x16x16", 4096, 2, replica=64),
    Row("llama3_8b_v5p_128", "v5p:4x4x4*2", ("mesh.replica=2", "train.pretrain.global_batch_size=256")),
    _sharded("llama3_8b_v5p_128", "tpu7x:2x4x4", 64, 2),
    Row("llama3_8b_v6e_256", "v6e:16x16"),
    Row("llama3_8b_128k_v5p_128", "v5p:4x4x4"),
    Row("llama3_70b_v6e_256", "v6e:16x16"),
    _sharded("llama3_8b_v5p_128", "v5p:8x8x8", 512, 1, "model=llama3_1_405b", "train.pretrain.remat={}"),
    _sharded("llama3_8b_v5p_128", "v5p:4x4x4", 64, 1, "model=gemma3_27b"),
    Row("mixtral_8x7b_v5p_128", "v5p:4x4x4"),
    Row("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("model=qwen3_30b_a3b",)),
    Row("mixtral_8x7b_v5p_128", "v5p:4x4x4", ("model=gpt_oss_20b",)),
    _sharded("mixtral_8x7b_v5p_128", "v5p:4x4x4", 64, 2, "model=gpt_oss_120b", OFFLOADED, expert=16),
    _sharded("mixtral_8x7b_v5p_128", "v5p:8x8x8", 512, 2, "model=qwen3_235b_a22b", OFFLOADED, expert=32),
    Row("deepseek_v3_v5p_1024", "v5p:8x8x8"),
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


def make(folder: Path, out: Path, console: Console) -> None:
    """Plans every row and writes the page."""
    prepare()
    lines: list[str] = []
    with progress_on(console) as progress:
        for row in ROWS:
            progress.note(f"{row.name} on {row.topology}")
            lines.append(_line(row, folder, progress))
            out.write_text(_page(lines), encoding="utf-8")


def _line(row: Row, folder: Path, progress: Progress) -> str:
    config = load_config(RunConfig, folder / f"{row.config}.yaml", row.changes)
    topology, train = parse_topology(row.topology), config.train["pretrain"]
    assert isinstance(train, CrossEntropyConfig)
    plan = plan_train_step(config.model, train, config.mesh, topology, "train.pretrain", True, progress)
    total, active = num_params(config.model), num_active_params(config.model)
    size = f"{total / 1e9:,.2f} B" + (f" ({active / 1e9:,.1f} B active)" if active < total else "")
    keeps = "everything" if train.remat is None else " ".join(train.remat) or "nothing"
    rows = f"{train.global_batch_size} x {train.seq_len}" + (f" in {train.grad_accum}" if train.grad_accum > 1 else "")
    cells = (row.name, size, topology.name, str(topology.num_chips), mesh_name(config.mesh), rows, keeps)
    return "| " + " | ".join((*cells, *_results(plan, topology.chip.hbm_bytes))) + " |"


def _results(plan: ProgramPlan, hbm_bytes: int) -> tuple[str, ...]:
    memory = f"{plan.needs_bytes / 1e9:,.1f}", f"{plan.needs_bytes / hbm_bytes:.0%}"
    budget = plan.budget
    if not plan.fits or plan.estimate is None or not isinstance(budget, TrainingBudget):
        return (*memory, "does not fit", "", "", "")
    price = "" if budget.money is None else f"{budget.money / budget.tokens * 1e9:,.0f}"
    speed = f"{plan.estimate.step_s * 1e3:,.0f}", f"{budget.tokens_per_s_per_chip:,.0f}", f"{budget.mfu:.0%}"
    return (*memory, *speed, price)


def _page(lines: list[str]) -> str:
    made = ", ".join(f"{name} {version}" for name, version in versions().items())
    head = (
        "# What fits where\n\n"
        "Made by `uv run python -m lifecycle.cli.fit docs/fit.md`; do not edit. Memory is the TPU compiler's, for\n"
        "the whole real train step. Times are estimates, as `lifecycle plan` derives and qualifies them: nobody ran\n"
        "these on chips. MFU counts causal attention half. Bytes are decimal. A line is a run of `configs/`, or a\n"
        "preset of `configs/models/` put in place of such a run's model.\n\n"
        f"Compiled with {made}.\n\n"
    )
    rule = "|" + "---|" * len(COLUMNS)
    return head + "\n".join(("| " + " | ".join(COLUMNS) + " |", rule, *lines)) + "\n"


if __name__ == "__main__":
    make(Path("configs"), Path(sys.argv[1] if len(sys.argv) > 1 else "docs/fit.md"), Console())
