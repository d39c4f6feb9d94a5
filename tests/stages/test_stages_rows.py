"""A user's own rows: read, split the same way in every run, and broken ones told with file and line."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from obstore.store import MemoryStore

from lifecycle.cli.data import make_data
from lifecycle.core.config import ConfigError, load_config
from lifecycle.core.progress import Silent
from lifecycle.core.store import Store, StoreError
from lifecycle.stages import keys, rows
from lifecycle.stages.config import RunConfig
from lifecycle.stages.graph import build_graph, needed
from lifecycle.testing.notes import Notes
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.row_columns import KINDS
from lifecycle.text.row_files import RowError, read_rows
from lifecycle.training.config import SETTINGS, TrainConfig
from lifecycle.training.likelihood import SftConfig
from lifecycle.training.objectives import registry
from tests.website import Website

DEBUG = Path(__file__).parents[2] / "configs" / "debug.yaml"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokenizer")
    ByteTokenizer().save(folder)
    return {"tokenizer": SimpleNamespace(path=folder)}


def config(chat: Path | str, pairs: Path | str, *overrides: str) -> RunConfig:
    own = ("rows.docstrings=false", f"rows.chat=['{chat}']", f"rows.pairs=['{pairs}']", "evaluate={tasks: []}")
    return load_config(RunConfig, DEBUG, [*own, *overrides])


def write(path: Path, texts: list[str]) -> Path:
    path.write_text("".join(json.dumps({"prompt": text, "completion": "yes"}) + "\n" for text in texts))
    return path


def write_both(path: Path, texts: list[str]) -> tuple[Path, Path]:
    """Chat rows in a file, and pairs of the same prompts in one beside it."""
    pairs = path.with_name(f"pairs-{path.name}")
    pairs.write_text("".join(json.dumps({"prompt": text, "chosen": "a", "rejected": "b"}) + "\n" for text in texts))
    return write(path, texts), pairs


def prompts(path: Path) -> list[str]:
    return [row["prompt"] for _, row in read_rows(path)]


@settings(max_examples=20, deadline=None)
@given(texts=st.lists(st.text("abcdefgh", min_size=1, max_size=8), unique=True, min_size=4, max_size=30))
def test_no_row_is_lost_and_each_falls_on_the_same_side_whatever_is_beside_it(
    inputs: Any, tmp_path_factory: pytest.TempPathFactory, texts: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    sides: list[dict[str, str]] = []
    for number, chosen in enumerate((texts, texts[::2])):
        out = folder / str(number)
        out.mkdir()
        own = write_both(folder / f"{number}.jsonl", chosen)
        rows.run(config(*own, "rows.heldout_fraction=0.5"), inputs, out, Silent())
        sides.append({text: side for side in ("train", "heldout") for text in prompts(out / f"chat-{side}.jsonl")})
        assert sorted(sides[number]) == sorted(chosen)
        assert set(sides[number].values()) == {"train", "heldout"}
        of_pairs = {text: side for side in ("train", "heldout") for text in prompts(out / f"pairs-{side}.jsonl")}
        assert of_pairs == sides[number]  # what one stage learns of a prompt, none measures
    if min(list(sides[1].values()).count(side) for side in ("train", "heldout")) > 1:  # by chance, not by force
        assert all(sides[0][text] == side for text, side in sides[1].items())


def test_a_row_that_holds_an_evaluation_row_is_left_out_and_counted(inputs: Any, tmp_path: Path) -> None:
    asked = "How many marbles are left when Ann gives three of her twelve marbles to Ben and two to Cy?"
    task = tmp_path / "task.jsonl"
    task.write_text("".join(json.dumps({"prompt": p, "answer": "7"}) + "\n" for p in (asked, "What is one and one?")))
    own = write_both(tmp_path / "own.jsonl", [f"Please answer. {asked} Thanks.", "one", "two", "three"])
    tasks = f"evaluate.tasks=[{{name: marbles, kind: generate, rows: {task}}}]"
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(
        ValueError, match=r"rows\.chat: 25.0% .* rows\.max_dropped=0\.1: 3 of 4 .*1 overlaps an evaluation"
    ):
        rows.run(config(*own, tasks), inputs, out, Silent())
    stats = rows.run(config(*own, tasks, "rows.max_dropped=0.3"), inputs, out, Silent()).stats
    for kind in ("chat", "pairs"):
        assert stats["own"][kind]["dropped"] == {"overlaps an evaluation row": 1}
        assert "own.jsonl:1: overlaps an evaluation row (task.jsonl:1, " in stats["own"][kind]["examples"][0]
    kept = prompts(out / "chat-train.jsonl") + prompts(out / "chat-heldout.jsonl")
    assert sorted(kept) == ["one", "three", "two"]


def test_the_key_has_what_is_in_the_users_files_and_not_where_they_are(tmp_path: Path) -> None:
    """Of evaluation rows also the file's name, which results mention."""
    before, after = tmp_path / "before", tmp_path / "after"
    for folder in (before, after):
        folder.mkdir()
        write(folder / "own.jsonl", ["one", "two", "three"])
        (folder / "task.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n')
        (folder / "tokenizer.json").write_text("{}")

    def keys_in(folder: Path) -> list[object]:
        own = folder / "own.jsonl"
        task = f"evaluate.tasks=[{{name: t, kind: generate, rows: {folder / 'task.jsonl'}}}]"
        run = config(own, own, task, f"tokenizer={{kind: hf, path: {folder / 'tokenizer.json'}}}")
        return [keys.rows(run), keys.evaluation(run, "sft"), keys.tokenizer(run)]

    same = keys_in(before)
    assert keys_in(after) == same
    (after / "chat_template.jinja").write_text("beside the tokenizer")
    assert [a == b for a, b in zip(keys_in(after), same, strict=True)] == [True, True, False]
    write(after / "own.jsonl", ["one", "two"])
    assert [a == b for a, b in zip(keys_in(after), same, strict=True)] == [False, True, False]
    (after / "task.jsonl").rename(after / "tasks.jsonl")
    (after / "task.jsonl").write_text('{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "e"}\n')
    assert [a == b for a, b in zip(keys_in(after), same, strict=True)] == [False, False, False]


def test_rows_are_read_at_addresses_whose_content_is_in_their_key(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_memory: dict[str, MemoryStore]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    store, (own, pairs) = Store("s3://bucket/own rows"), write_both(tmp_path / "own.jsonl", ["one", "two", "three"])
    store.upload(own, "é.jsonl")
    store.upload(pairs, "pairs.jsonl")
    for name in ("a.jsonl", "b.jsonl", "c.txt"):
        store.write(f"eval/{name}", json.dumps({"prompt": f"What is {name}?", "answer": "7"}).encode() + b"\n")
    address = "s3://bucket/own rows/é.jsonl"
    tasks = "evaluate.tasks=[{name: names, kind: generate, rows: 's3://bucket/own rows/eval/*.jsonl'}]"
    run = config(address, "s3://bucket/own rows/pairs.jsonl", tasks)
    key = keys.rows(run)
    assert [file.name for file in keys.evaluation_files(run)["names"]] == ["a.jsonl", "b.jsonl"]
    assert address not in str(key)
    out = tmp_path / "out"
    out.mkdir()
    stats = rows.run(run, inputs, out, Silent()).stats
    assert (stats["own"]["chat"]["train"], stats["own"]["chat"]["heldout"]) == (2, 1)
    assert stats["read_from"] == [address, "s3://bucket/own rows/pairs.jsonl"]
    store.write("eval/b.jsonl", json.dumps({"prompt": "Changed?", "answer": "7"}).encode())
    changed = keys.rows(run)["own"]
    assert changed != key["own"] and changed["chat"] == key["own"]["chat"]
    with pytest.raises(StoreError, match="s3://bucket/own rows/gone: nothing is there"):
        keys.rows(config("s3://bucket/own rows/gone", own))


def test_a_tokenizer_at_an_address_is_in_the_key_with_its_content(website: Website) -> None:
    website.files |= {"own/tokenizer.json": b"{}", "own/model.safetensors": b"weights"}
    own = f"tokenizer={{kind: hf, path: '{website.url}/own'}}"
    run = load_config(RunConfig, DEBUG, [own])
    key = keys.tokenizer(run)
    website.files["own/model.safetensors"] = b"others"
    assert keys.tokenizer(run) == key
    website.files["own/tokenizer.json"] = b"{ }"
    assert keys.tokenizer(run)["content"] != key["content"]


def test_a_stage_without_rows_says_which_settings_give_some_and_those_before_it_can_be_made(tmp_path: Path) -> None:
    own = write(tmp_path / "own.jsonl", ["one"])
    run = load_config(RunConfig, DEBUG, ["rows.docstrings=false", f"rows.chat=[{own}]", "evaluate=null"])
    graph = build_graph(run)
    with pytest.raises(ConfigError, match=r"train\.prefer reads pairs rows and there are none: list .* rows\.pairs"):
        needed(graph, ["report"])
    assert [stage.name for stage in needed(graph, ["sft"])][-2:] == ["pretrain", "sft"]


def test_data_is_prepared_before_there_are_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr("lifecycle.cli.data.make", lambda run, targets, words: asked.extend(targets))
    make_data(DEBUG, "rows.docstrings=false", "evaluate=null")
    assert asked == ["documents", "tokens"]
    make_data(DEBUG)
    assert asked[2:] == ["documents", "tokens", "rows"]


def test_a_broken_line_is_told_with_file_and_number(inputs: Any, tmp_path: Path) -> None:
    own, pairs = write_both(tmp_path / "own.jsonl", ["one", "two"])
    own.write_text(own.read_text() + "{\n")
    with pytest.raises(ValueError, match=r"own\.jsonl:3"):
        rows.run(config(own, pairs), inputs, tmp_path, Silent())


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "a", "answer": "b"}, "expected messages, or prompt and completion"),
        ({"messages": [{"role": "bot", "content": "a"}]}, "unknown role"),
    ],
)
def test_a_row_of_other_columns_is_told_with_the_users_file_and_line(
    inputs: Any, tmp_path: Path, row: dict[str, object], problem: str
) -> None:
    own, pairs = write_both(tmp_path / "own.jsonl", ["one", "two"])
    own.write_text(own.read_text() + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=rf"own\.jsonl:3: .*{problem}"):
        rows.run(config(own, pairs), inputs, tmp_path, Silent())


def test_rows_left_by_a_killed_run_are_not_doubled(inputs: Any, tmp_path: Path) -> None:
    own, out = write_both(tmp_path / "own.jsonl", ["one", "two", "three"]), tmp_path / "out"
    out.mkdir()
    rows.run(config(*own), inputs, out, Silent())
    once = {path.name: path.read_bytes() for path in out.iterdir()}
    (out / "chat-train.jsonl").write_bytes(once["chat-train.jsonl"] + b"{ cut sh")
    rows.run(config(*own), inputs, out, Silent())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == once


def test_a_file_of_rows_that_is_not_there_is_told(tmp_path: Path) -> None:
    missing = tmp_path / "none.jsonl"
    with pytest.raises(ConfigError, match=r"none\.jsonl: no such file"):
        keys.rows(config(missing, missing))


USER_ONLY = {"messages": [{"role": "user", "content": "hello"}]}
EQUAL = {"prompt": "a", "chosen": "b", "rejected": "b"}


@pytest.mark.parametrize(
    ("kind", "lines", "problem"),
    [
        ("chat", [], r"own\.jsonl: it has no rows; correct rows\.chat"),
        ("chat", [USER_ONLY, USER_ONLY], r"rows\.chat: no row of 2 is usable:\n.*own\.jsonl:1: empty assistant mask"),
        ("chat", [{"prompt": "a", "completion": "b"}] * 3, r"66.7% .*1 of 3 rows kept; dropped: 2 doubled"),
        ("chat", [{"prompt": "a", "completion": "b"}], r"1 row is left, and none for the heldout side"),
        ("pairs", [EQUAL], r"no row of 1 is usable:\n.*own\.jsonl:1: chosen and rejected are equal"),
    ],
)
def test_a_file_from_which_nothing_can_be_learned_is_refused(
    inputs: Any, tmp_path: Path, kind: str, lines: list[dict[str, object]], problem: str
) -> None:
    good, pairs = write_both(tmp_path / "good.jsonl", ["one", "two"])
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = (own, pairs) if kind == "chat" else (good, own)
    with pytest.raises(ValueError, match=problem):
        rows.run(config(*files), inputs, tmp_path, Silent())


def test_what_is_dropped_is_told_with_its_lines(inputs: Any, tmp_path: Path) -> None:
    (own, pairs), notes = write_both(tmp_path / "own.jsonl", ["one", "two", "one"]), Notes()
    own.write_text(own.read_text() + json.dumps(USER_ONLY) + "\n")
    told = rows.run(config(own, pairs, "rows.max_dropped=0.5"), inputs, tmp_path, notes).stats["own"]
    first = notes.notes.index(
        "rows.chat: 2 of 4 rows kept; dropped: 1 doubled, 1 empty assistant mask: no assistant message with a content"
    )
    assert notes.notes[first + 1] == f"  {own}:3: doubled (as {own}:1)"
    assert f"{own}:4: empty assistant mask" in notes.notes[first + 2]
    assert told["chat"]["dropped"]["doubled"] == told["pairs"]["dropped"]["doubled"] == 1


def test_rows_too_long_for_a_stage_are_an_error_before_anything_is_trained(inputs: Any, tmp_path: Path) -> None:
    own, pairs = write_both(tmp_path / "own.jsonl", [*map(str, range(8)), "a" * 200])
    with pytest.raises(ValueError, match=r"train\.prefer, .*rows\.pairs: .*1 longer than 256 tokens; .*truncation"):
        rows.run(config(own, pairs), inputs, tmp_path, Silent())  # 203 + 203 tokens of a pair; of a chat row 206
    cut = rows.run(config(own, pairs, "train.prefer.truncation=keep_end"), inputs, tmp_path, Silent()).stats
    assert cut["own"]["pairs"]["kept"] == 9


def test_the_epochs_of_a_stage_are_checked_with_its_rows(inputs: Any, tmp_path: Path) -> None:
    own = write_both(tmp_path / "own.jsonl", [str(number) * 60 for number in range(10)])
    by_epochs = ("train.sft.steps=0", "train.sft.epochs=2", "train.sft.replay_share=0")
    warm = "train.sft.optimizer={name: muon, learning_rate: 0.003, schedule: {warmup_steps: 3}}"
    assert rows.run(config(*own, *by_epochs), inputs, tmp_path, Silent()).stats["epoch_rows"]["sft"] == 3
    with pytest.raises(ConfigError, match=r"epochs=2 are 2 steps of this stage: .*warmup_steps=3 leaves no step"):
        rows.run(config(*own, *by_epochs, warm), inputs, tmp_path, Silent())


def test_a_file_that_changes_while_it_is_read_is_told(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, pairs = write_both(tmp_path / "own.jsonl", ["one", "two", "three"])
    reading = rows.read_own

    def edited(*arguments: Any) -> Any:
        found = reading(*arguments)
        own.write_text(own.read_text() + json.dumps({"prompt": "four", "completion": "a"}) + "\n")
        return found

    monkeypatch.setattr(rows, "read_own", edited)
    with pytest.raises(ValueError, match="changed while it was read; run again"):
        rows.run(config(own, pairs), inputs, tmp_path, Silent())


def test_a_column_that_no_file_has_is_told_with_the_nearest(inputs: Any, tmp_path: Path) -> None:
    own = write_both(tmp_path / "own.jsonl", ["one", "two"])
    with pytest.raises(ValueError, match=r"rows\.ignore: no row has a column 'promt'; did you mean 'prompt'"):
        rows.run(config(*own, "rows.ignore=[promt]"), inputs, tmp_path, Silent())
    files = f"rows.chat=[{{path: '{own[0]}', rename: {{question: prompt}}}}]"
    with pytest.raises(ValueError, match=r"rows\.chat: .*own\.jsonl: rename: no row has a column 'question'"):
        rows.run(config(*own, files), inputs, tmp_path, Silent())


def test_a_misspelt_setting_of_a_file_is_told_with_the_nearest(tmp_path: Path) -> None:
    own, pairs = write_both(tmp_path / "own.jsonl", ["one", "two"])
    with pytest.raises(ConfigError, match=r"rows\.chat\.0\.ignroe: no such setting; did you mean 'ignore'"):
        config(own, pairs, f"rows.chat=[{{path: '{own}', ignroe: [id]}}]")


def test_names_of_special_tokens_in_text_are_told(inputs: Any, tmp_path: Path) -> None:
    (own, pairs), notes = write_both(tmp_path / "own.jsonl", ["one", "<|im_start|>user"]), Notes()
    rows.run(config(own, pairs), inputs, tmp_path, notes)
    assert any(f"1 rows of text have names of special tokens, first {own}:2" in note for note in notes.notes)
    quiet = Notes()
    rows.run(config(own, pairs, "rows.special_tokens=true"), inputs, tmp_path, quiet)
    assert not any("special tokens" in note for note in quiet.notes)


@pytest.mark.parametrize(
    ("kind", "row"),
    [
        ("labelled", {"completion": "a", "label": True}),
        ("steps", {"completions": ["a", "b"], "labels": [True, False]}),
        ("prompts", {"answer": 4, "tests": ["a == 4"]}),
    ],
)
def test_every_kind_of_rows_goes_through_the_stage(
    inputs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, row: dict[str, object]
) -> None:
    monkeypatch.setattr(registry, "ROWS", ("tokens", *KINDS))
    monkeypatch.setitem(registry._KINDS, "toy", registry.ObjectiveKind("toy", SftConfig, kind, "nothing:here"))
    monkeypatch.setitem(SETTINGS, "toy", TrainConfig)
    own = tmp_path / "own.jsonl"
    own.write_text("".join(json.dumps({"prompt": f"q{n}"} | row) + "\n" for n in range(12)))
    stage = "{toy: {objective: toy, epochs: 2, seq_len: 16, global_batch_size: 2}}"
    run = load_config(RunConfig, DEBUG, ["rows={" + f"{kind}: '{own}'" + "}", f"train={stage}", "evaluate=null"])
    assert build_graph(run)["toy"].inputs == ("tokenizer", "rows") and run.has_rows
    stats = rows.run(run, inputs, tmp_path, Silent()).stats
    assert stats["own"][kind]["kept"] == 12 and stats["epoch_rows"]["toy"] >= 1
    kept = [found for side in ("train", "heldout") for _, found in read_rows(tmp_path / f"{kind}-{side}.jsonl")]
    assert sorted(found["prompt"] for found in kept) == sorted(f"q{n}" for n in range(12))
    assert all(found == {"prompt": found["prompt"]} | row for found in kept)
    lacking = load_config(RunConfig, DEBUG, ["rows={}", f"train={stage}", "evaluate=null"])
    with pytest.raises(
        ConfigError,
        match=f"train.toy reads {kind} rows and there are none: list files in rows.{kind}(, or name tasks .*)?$",
    ):
        needed(build_graph(lacking), ["toy"])


SIZE = "steps: 2, seq_len: 64, global_batch_size: 2"
REWARDED = (
    "{rl: {objective: grpo, epochs: 2, seq_len: 32, global_batch_size: 4, prompts_per_step: 2, group_size: 2, "
    "num_iterations: 3, max_prompt_tokens: 12, max_completion_tokens: 4, rewards: [%s]}}"
)


def rewarded(tmp_path: Path, reward: str, prompts: list[str], **columns: object) -> RunConfig:
    own = tmp_path / "prompts.jsonl"
    own.write_text("".join(json.dumps({"prompt": prompt} | columns) + "\n" for prompt in prompts))
    settings = [f"rows={{prompts: '{own}'}}", f"train={REWARDED % reward}", "evaluate=null"]
    return load_config(RunConfig, DEBUG, settings)


@pytest.mark.parametrize(
    ("reward", "columns", "says"),
    [
        ("{name: exact}", {"answers": "4"}, r"prompts.jsonl:1: train.rl: no column 'answer' for the reward exact"),
        (
            "{name: column, column: score}",
            {"score": "high"},
            r"prompts.jsonl:1: train.rl: .*'high' is no finite",
        ),
        ("{function: 'FILE:scored'}", {"gold": 1}, r"prompts.jsonl:1: train.rl: no column 'golds'"),
    ],
)
def test_a_prompt_that_a_reward_cannot_score_is_an_error_before_anything_is_trained(
    inputs: Any, tmp_path: Path, reward: str, columns: dict[str, object], says: str
) -> None:
    code = tmp_path / "rewards.py"
    code.write_text("def scored(completions, golds):\n    return golds\n")
    run = rewarded(tmp_path, reward.replace("FILE", str(code)), [f"q{n}" for n in range(8)], **columns)
    with pytest.raises(RowError, match=says):
        rows.run(run, inputs, tmp_path, Silent())


def test_prompts_are_held_to_their_own_limit_and_counted_in_epochs_of_prompts(inputs: Any, tmp_path: Path) -> None:
    fitting = rewarded(tmp_path, "{name: think_format}", [f"q{n}" for n in range(13)])
    epoch = rows.run(fitting, inputs, tmp_path, Silent()).stats["epoch_rows"]["rl"]
    assert epoch == 12 / 2 * 3 * 4  # 12 prompts to train on, 2 of them in 3 steps of 4 rows
    assert fitting.train["rl"].resolved(epoch).steps == 2 * 12 // 2 * 3
    long = rewarded(tmp_path, "{name: think_format}", [f"a question that is long {n}" for n in range(13)])
    with pytest.raises(RowError, match=r"no row of 12 is usable:\n.*longer than 12 tokens"):
        rows.run(long, inputs, tmp_path, Silent())
    other = rewarded(tmp_path, "{name: think_format, opening: '<t>'}", [f"q{n}" for n in range(13)])
    assert keys.rows(fitting) != keys.rows(other)  # which are checked with the rows


def test_margins_are_read_by_a_stage_or_refused_before_anything_is_trained(inputs: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    pairs = [{"prompt": f"q{n}", "chosen": "a", "rejected": "b", "margin": 1.5} for n in range(12)]
    own.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))

    def read(objective: str) -> RunConfig:
        objectives = {"sft": "sft", "dpo": "dpo", "last": objective}
        stages = ", ".join(f"{stage}: {{objective: {name}, {SIZE}}}" for stage, name in objectives.items())
        chat = tmp_path / "chat.jsonl"
        write(chat, [f"q{n}" for n in range(12)])
        rows_of = f"rows={{chat: '{chat}', pairs: '{own}'}}"
        return load_config(RunConfig, DEBUG, [rows_of, f"train={{{stages}}}", "evaluate=null"])

    with pytest.raises(
        RowError, match=r"nobody reads it: train.dpo \(dpo\), train.last \(orpo\); set rows.ignore=\[margin"
    ):
        rows.run(read("orpo"), inputs, tmp_path, Silent())
    notes = Notes()
    rows.run(read("reward_model"), inputs, tmp_path, notes)
    assert "rows.pairs: the margin is not read by train.dpo (dpo)" in notes.notes
    assert keys.rows(read("orpo")) != keys.rows(read("reward_model"))


def test_labels_that_are_all_the_same_are_told(inputs: Any, tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    stages = f"{{sft: {{objective: sft, {SIZE}}}, kto: {{objective: kto, {SIZE}}}}}"
    chat = write(tmp_path / "chat.jsonl", [f"q{n}" for n in range(12)])
    for labels, is_told in (([True], True), ([True, False], False)):
        answers = [{"prompt": f"q{n}", "completion": "a", "label": labels[n % len(labels)]} for n in range(40)]
        own.write_text("".join(json.dumps(answer) + "\n" for answer in answers))
        settings = [f"rows={{chat: '{chat}', labelled: '{own}'}}", f"train={stages}", "evaluate=null"]
        rows.run(load_config(RunConfig, DEBUG, settings), inputs, tmp_path, notes := Notes())
        assert any("training rows have label true" in note for note in notes.notes) == is_told
