"""`lifecycle doctor`: a training stage's rows as the model sees them, and what becomes of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Annotated

from cyclopts import Parameter
from rich.table import Table
from rich.text import Text

from lifecycle.cli.arguments import ConfigPath, Overrides, read_config
from lifecycle.cli.display import progress_on
from lifecycle.cli.terminal import terminal
from lifecycle.rl.config import RolloutConfig
from lifecycle.stages.doctor import QUANTILES, Examination, Side, examine, packed
from lifecycle.stages.own_rows import HELDOUT, OVERLAPPING, SIDES, TRAIN
from lifecycle.text.interface import Tokenizer
from lifecycle.text.row_encoder import Encoded, EncodedGroup, EncodedRow, segments_of
from lifecycle.training.config import TrainConfig
from lifecycle.training.distilling import Answering, DistillationConfig

type Stage = Annotated[str, Parameter(help="A training stage that reads rows.")]
type Rows = Annotated[int, Parameter(help="How many rows to print, spread evenly over the training rows.")]

MASKED, LEARNED, SPECIAL, SPECIAL_LEARNED = "dim", "green", "yellow", "bold yellow"
SEGMENTS = {"pairs": ("chosen", "rejected")}
EXAMPLES = 5  # dropped rows that are listed


def doctor(config: ConfigPath, stage: Stage, /, *overrides: Overrides, rows: Rows = 3) -> None:
    """Prints rows as the model sees them, what is dropped or cut and why, lengths, packing, and a fitting seq_len."""
    run = read_config(config, overrides)
    console = terminal(highlight=False)
    with progress_on(terminal(stderr=True)) as progress:
        found = examine(run, stage, progress)
    has_colours = console.color_system is not None and not console.no_color
    for name, encoded in _spread(found.sides[TRAIN], rows):
        console.print(Text(name, style="bold"))
        for title, segment in _titled(found.kind, encoded):
            console.print(Text(title, style="italic"), end="\n" if title else "")
            console.print(shown(found.tokenizer, segment, has_colours), soft_wrap=True)
        console.print()
    console.print(_legend(has_colours))
    console.print()
    for line in _findings(found, run.model_of(stage).max_seq_len):
        console.print(line if isinstance(line, Table) else Text(line), soft_wrap=True)


def _spread(side: Side, count: int) -> Iterator[tuple[str, Encoded]]:
    """Yields `count` rows of a side with their places, from its first to its last."""
    count = min(max(0, count), len(side.kept))
    for at in range(count):
        row = at * (len(side.kept) - 1) // max(1, count - 1)
        yield side.report.names[row], side.kept[row]


def _titled(kind: str, encoded: Encoded) -> Iterator[tuple[str, EncodedRow]]:
    values = encoded.values if isinstance(encoded, EncodedGroup) else {}
    said = ", ".join(f"{name} {', '.join(f'{value:g}' for value in own)}" for name, own in values.items())
    titles = SEGMENTS.get(kind, ("",))
    for number, (title, segment) in enumerate(zip(titles, segments_of(encoded), strict=True)):
        yield ", ".join(part for part in (title, said if number == 0 else "") if part), segment


def shown(tokenizer: Tokenizer, segment: EncodedRow, has_colours: bool) -> Text:
    """A segment's text: in colours, or with marks around what is learned («») and around special tokens (⟨⟩)."""
    text = Text()
    for is_learned, first, stop in _runs(segment):
        text.append("«" if is_learned and not has_colours else "")
        for is_special, part in groupby(segment.ids[first:stop], key=tokenizer.is_special):
            data = [tokenizer.token_bytes(token_id) for token_id in part]
            said = map(_readable, data if is_special else [b"".join(data)])
            marks = "⟨⟩" if is_special and not has_colours else ("", "")
            style = (SPECIAL_LEARNED if is_learned else SPECIAL) if is_special else LEARNED if is_learned else MASKED
            text.append("".join(marks[0] + word + marks[1] for word in said), style)
        text.append("»" if is_learned and not has_colours else "")
        if is_learned and segment.labels is not None:
            text.append(f"={segment.labels[stop - 1]:g}", "bold")
    return text


def _runs(segment: EncodedRow) -> Iterator[tuple[bool, int, int]]:
    """Yields (whether it is learned, first, stop) of runs of tokens; each that has a label is by itself."""
    is_apart = segment.labels is not None
    keys = [(learned, at if learned and is_apart else -1) for at, learned in enumerate(segment.loss_mask)]
    stop = 0
    for (is_learned, _), run in groupby(keys):
        first, stop = stop, stop + len(list(run))
        yield is_learned, first, stop


def _readable(data: bytes) -> str:
    """Text with its line ends marked; what would move the cursor is written out."""
    plain = data.decode("utf-8", errors="replace")
    return "".join("⏎\n" if c == "\n" else c if c.isprintable() else c.encode("unicode_escape").decode() for c in plain)


def _legend(has_colours: bool) -> Text:
    if not has_colours:
        return Text("«learned», ⟨special token⟩, ⏎ a line's end; all else is seen and not learned")
    parts = (("learned", LEARNED), ("seen and not learned", MASKED), ("special token", SPECIAL),
             ("special token, learned", SPECIAL_LEARNED))  # fmt: skip
    return Text("  ").join(Text(word, style) for word, style in parts)


def _findings(found: Examination, max_seq_len: int) -> Iterator[str | Table]:
    train = found.train
    yield f"train.{found.stage}: {train.objective} on {found.kind} rows, {_length_setting(train)}={_limit(train)}"
    for made in found.made.get("reasoning_gym", ()) if found.kind == "prompts" else ():
        yield f"{made['task']}: {made['kept']:,} of {made['rows']:,} prompts kept{_reasons(made['dropped'])}"
    if own := found.own:
        yield f"own rows: {own['kept']:,} of {own['rows']:,} kept{_reasons(own['dropped'])}"
        yield from (f"  {example}" for example in own["examples"][:EXAMPLES])
        overlapping = own["dropped"].get(OVERLAPPING, 0)
        yield (
            f"contamination: {overlapping:,} rows overlap an evaluation row, and are left out"
            if found.compared
            else "contamination: the run has no files of evaluation rows to compare with"
        )
    for side in SIDES:
        yield f"{side} rows: {found.sides[side].report.said}"
        yield from (f"  {example}" for example in found.sides[side].report.examples[:EXAMPLES])
    yield _lengths(found)
    yield from _packing(found)
    yield from _suggestion(found, max_seq_len)


def _reasons(dropped: dict[str, int]) -> str:
    return "; dropped: " + ", ".join(f"{count:,} {reason}" for reason, count in dropped.items()) if dropped else ""


def _length_setting(train: TrainConfig) -> str:
    return "max_prompt_tokens" if isinstance(train, RolloutConfig) else "seq_len"


def _limit(train: TrainConfig) -> int:
    """What a row may have, or is cut to."""
    return train.seq_len if train.wraps else train.longest_row


def _lengths(found: Examination) -> Table:
    table = Table(title="tokens of a row before it is cut", title_justify="left", box=None, header_style="bold")
    names = {0: "shortest", 0.5: "median", 1: "longest"}
    columns = [names.get(q, f"{q:.0%} up to") for q in QUANTILES]
    for column in ("rows", *columns, f"over {_limit(found.train)}", "learned"):
        table.add_column(column, justify="left" if column == "rows" else "right")
    for name in (TRAIN, HELDOUT):
        side = found.sides[name]
        over = sum(length > _limit(found.train) for length in side.lengths)
        lengths = (f"{length:,}" for length in side.quantiles())
        table.add_row(name, *lengths, f"{over:,} ({over / len(side.lengths):.1%})", f"{side.learned_share:.0%}")
    return table


def _packing(found: Examination) -> Iterator[str]:
    if (packing := found.packing) is None:
        return
    train = found.train
    is_sampled = isinstance(train, RolloutConfig)
    epoch = train.epoch_rows(packing.examples, packing.rows)
    steps = train.steps or train.resolved(epoch).steps
    passes = steps * train.global_batch_size / epoch
    if is_sampled:
        yield (
            f"sampling: {packing.examples:,} prompts of an epoch; {steps:,} steps with {train.prompts_per_step:,} "
            f"prompts, {train.group_size} samples of each, are {passes:.3g} epochs"
        )
        return
    if isinstance(train, DistillationConfig) and train.answering is not None:
        yield _answering(train.answering, found.sides[TRAIN].kept)
    yield (
        f"packing: {packing.examples:,} examples of an epoch in {packing.rows:,} rows of {train.seq_len} tokens, "
        f"{packing.fill:.1%} full; {steps:,} steps of {train.global_batch_size} rows are {passes:.3g} epochs"
    )


def _answering(answering: Answering, rows: Sequence[Encoded]) -> str:
    prompts = [row.prompt_ids for row in rows if isinstance(row, EncodedRow)]
    reasons = Counter(filter(None, map(answering.unasked, prompts)))
    asked = len(prompts) - reasons.total()
    return (
        f"on_policy: a share of {answering.share:g} of the steps, each on answers to {answering.prompts_per_step:,} of "
        f"{asked:,} prompts{_reasons(reasons)}"
    )


def _suggestion(found: Examination, max_seq_len: int) -> Iterator[str]:
    side, length = found.sides[TRAIN], found.suggested
    longer = f"{found.longer:,} of {len(side.lengths):,} training rows are longer"
    if isinstance(found.train, RolloutConfig):
        yield f"suggested: train.{found.stage}.max_prompt_tokens={length}: {longer}"
        return
    fill = (
        packed([size for size in side.lengths if size <= length], length, found.train.wraps).fill
        if found.longer < len(side.lengths)
        else 0
    )
    limit = f"; the model's max_seq_len={max_seq_len} allows no more" if length == max_seq_len else ""
    yield (f"suggested: train.{found.stage}.seq_len={length}: {longer}, and packed rows are {fill:.1%} full{limit}")
