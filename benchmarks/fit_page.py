"""The page of `benchmarks/fit.py`: its tables' columns, and the words round them."""

from pathlib import Path

from lifecycle.planning.compilers import GPU_COMPILER, TPU_COMPILER
from lifecycle.planning.programs.kept import versions

type Cells = tuple[str, ...]  # of a row

COLUMNS = (
    "model", "parameters", "topology", "chips", "mesh", "rows x positions", "keeps", "peak GB per device", "of it",
    "step ms", "tokens/s per chip", "MFU", "USD per 10^9 tokens", "date",
)  # fmt: skip
DECODE_COLUMNS = (
    "model", "parameters", "weights", "topology", "chips", "mesh", "slots x context", "peak GB per device", "of it",
    "ms a token", "tokens/s per chip", "of the memory's rate", "USD per 10^6 tokens", "ms a chunk", "date",
)  # fmt: skip
STAGE_COLUMNS = (
    "run", "stage", "topology", "chips", "mesh", "rows x positions", "slots x context", "peak GB per device", "of it",
    "update M cycles", "update ms", "MFU", "scoring ms", "ms a chunk", "ms a token", "s a step at most", "date",
)  # fmt: skip
PUBLISHED = Path(__file__).with_name("published.md")  # the page's end, written by hand


def row(cells: Cells) -> str:
    """A line of a table."""
    return "| " + " | ".join(cells) + " |"


def row_of(cells: Cells, lines: list[str]) -> str:
    """The row that begins with these cells; empty if the page has none."""
    return next((line for line in lines if line.startswith(row(cells)[:-1])), "")


def page(trained: list[str], staged: list[str], decoded: list[str]) -> str:
    """The page with the lines of its tables."""
    libraries = {**versions(TPU_COMPILER), **versions(GPU_COMPILER)}
    made = ", ".join(f"{name} {version}" for name, version in libraries.items())
    head = (
        "# What fits where\n\n"
        "Made by `uv run --extra tpu --extra gpu-compiler python benchmarks/fit.py docs/fit.md`; do not edit. Memory\n"
        "is the compiler's, for the whole real program. Times are estimates, as `lifecycle plan` derives and\n"
        "qualifies them (for GPUs a roofline's): nobody ran these on chips. Bytes are decimal. Each\n"
        "line is of the code at its date.\n\n"
        f"The newest are compiled with {made}.\n\n"
    )
    training = (
        "## Training\n\n"
        "A line is a run of `configs/`, or a preset of `configs/models/` in place of such a run's model. MFU counts\n"
        "causal attention half.\n\n"
    )
    post_training = (
        "\n## Post-training\n\n"
        "A stage of a run of `configs/`: `lifecycle plan CONFIG topology=... stage=STAGE`. Where rewards teach,\n"
        "sampler and trainer share the chips: the peak is that of the largest program with what lies beside it, and a\n"
        "step takes so long if all prompts and completions are as long as may be, without the host's part. Scoring\n"
        "is a forward pass over the step's rows, of the reference. All targets of a row count as learned.\n\n"
    )
    decoding = (
        "\n## Decoding\n\n"
        "The engine's decode program, every slot busy with a full context: `lifecycle plan CONFIG topology=...\n"
        "stage=decode` with the mesh as `serve.mesh`, and `serve.weights`. 100% of the memory's rate: what a chip has\n"
        "of weights and cache is read once per token, and nothing else takes time. The cache is in bfloat16. A chunk\n"
        "is 256 tokens of a prompt, of one prompt for each group of slots, by the prefill program.\n\n"
    )
    return (
        head
        + training
        + table(COLUMNS, trained)
        + post_training
        + table(STAGE_COLUMNS, staged)
        + decoding
        + table(DECODE_COLUMNS, decoded)
        + "\n"
        + PUBLISHED.read_text("utf-8")
    )


def table(columns: Cells, lines: list[str]) -> str:
    """A table with a head."""
    return "\n".join((row(columns), "|" + "---|" * len(columns), *lines)) + "\n"
