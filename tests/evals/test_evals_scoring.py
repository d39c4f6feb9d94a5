"""Scoring through the protocols, with the trigram as a real model behind them."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.core.config import ConfigError, validate
from lifecycle.core.progress import Silent
from lifecycle.evals.config import EvalConfig
from lifecycle.evals.encoder import TextEncoder
from lifecycle.evals.evaluation import evaluate
from lifecycle.evals.kinds.bits_per_byte import document_windows
from lifecycle.evals.kinds.generation import GenerationTask
from lifecycle.evals.results import ResultError, read_results
from lifecycle.evals.rows import read_rows
from lifecycle.evals.subject import Pair
from lifecycle.evals.tasks import TaskConfig
from lifecycle.evals.trigram import Trigram, bits_per_byte, fit_trigram
from lifecycle.inference.beams import BeamConfig
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate


class Bytes:
    """Bytes as ids from 4; 0 begins a document, 1 ends it, 2 and 3 open a user's and an assistant's turn."""

    bos_id, eos_id = 0, 1

    def begin(self, ids: Sequence[int]) -> list[int]:
        return [0, *ids]

    def encode(self, text: str) -> list[int]:
        return [byte + 4 for byte in text.encode()]

    def encode_chat(self, messages: Sequence[Mapping[str, str]]) -> list[int]:
        turns = [[2, *self.encode(message["content"])] for message in messages]
        return [0, *(token for turn in turns for token in turn), 3]


class TrigramModel:
    """A trigram as the subject of an evaluation."""

    encoder = Bytes()

    def __init__(self, texts: Sequence[str], max_seq_len: int = 64) -> None:
        documents = [np.array([0, *self.encoder.encode(text), 1]) for text in texts]
        self.model: Trigram = fit_trigram(documents, 260, 0)
        self.max_seq_len = max_seq_len
        self.asked: list[Pair] = []

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
        self.asked += pairs
        return [self._loglikelihood(*pair) for pair in pairs]

    def greedy_loglikelihoods(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        return [(self._loglikelihood(*pair), self._is_greedy([0, *pair[0]], pair[1])) for pair in pairs]

    def _is_greedy(self, ids: list[int], continuation: list[int]) -> bool:
        if not continuation:
            return True
        p = self.model.probabilities(np.full(260, ids[-2]), np.full(260, ids[-1]), np.arange(260))
        return int(p.argmax()) == continuation[0] and self._is_greedy([*ids, continuation[0]], continuation[1:])

    def _loglikelihood(self, context: list[int], continuation: list[int]) -> float:
        assert context and continuation and len(context) + len(continuation) - 1 <= self.max_seq_len
        stream = np.array([0, *context, *continuation])[-len(continuation) - 2 :]
        p = self.model.probabilities(stream[:-2], stream[1:-1], stream[2:])
        return float(np.log(p).sum())

    def generate(
        self, prompts: Sequence[list[int]], max_tokens: int, stop: Sequence[str], beams: BeamConfig | None
    ) -> list[str]:
        return [self._generate([0, *prompt], max_tokens, stop) for prompt in prompts]

    def _generate(self, ids: list[int], max_tokens: int, stop: Sequence[str]) -> str:
        text = b""
        for _ in range(max_tokens):
            p = self.model.probabilities(np.full(260, ids[-2]), np.full(260, ids[-1]), np.arange(260))
            ids = [*ids, int(p.argmax())]
            if ids[-1] < 4 or any(text.decode().endswith(end) for end in stop):
                break
            text += bytes([ids[-1] - 4])
        return text.decode()


def task(tmp_path: Path, kind: str, rows: Sequence[Mapping[str, Any]], **settings: Any) -> Any:
    path = tmp_path / f"{kind}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return validate(TaskConfig, {"name": kind, "kind": kind, "rows": str(path), **settings})


def run(config: Any, model: TrigramModel) -> Any:
    return config.score(read_rows(config, {}).rows, model, Silent())


@given(st.integers(2, 200), st.integers(1, 40))
def test_windows_predict_each_token_once_and_fit(length: int, max_seq_len: int) -> None:
    ids = list(range(length))
    pairs = document_windows(ids, max_seq_len)
    assert [token for _, continuation in pairs for token in continuation] == ids[1:]
    for context, continuation in pairs:
        assert len(context) + len(continuation) - 1 <= max_seq_len
        assert context[-1] + 1 == continuation[0]
        assert context == list(range(context[0], context[-1] + 1))


@pytest.mark.parametrize("max_seq_len", [12, 64, 10_000])
def test_bits_per_byte_equals_the_trigrams_own(tmp_path: Path, max_seq_len: int) -> None:
    texts = ["the cat sat on the mat", "the dög sat", "a cat and a dog " * 20]
    model = TrigramModel(["the cat sat on the dog", "a mat"], max_seq_len)
    result = run(task(tmp_path, "bits_per_byte", [{"text": text} for text in texts]), model)
    documents = [np.array([0, *Bytes().encode(text), 1]) for text in texts]
    sizes = [len(text.encode()) for text in texts]
    expected = bits_per_byte(model.model, documents, list("abc"), sizes, "t")
    assert result.mean == pytest.approx(expected.mean, rel=1e-12)
    assert (result.low, result.high) == pytest.approx((expected.low, expected.high), rel=1e-12)
    assert result.weights == sizes


def test_multiple_choice_finds_what_the_model_has_seen(tmp_path: Path) -> None:
    rows = [
        {"query": "sky is", "choices": [" red", " blue"], "gold": 1},
        {"query": "grass is", "choices": [" green", " black"], "gold": 0},
        {"query": "snow is", "choices": [" blue", " green"], "gold": 0},  # seen, but after the sky
    ]
    model = TrigramModel(["sky is blue", "sky is blue", "grass is green"])
    result = run(task(tmp_path, "multiple_choice", rows, chat=False, per_byte=False), model)
    assert [example.score for example in result.examples] == [1.0, 1.0, 1.0]
    assert result.other["chance"] == 0.5
    assert result.examples[0].detail["picked"] == " blue"


def test_per_byte_undoes_the_favour_for_short_choices(tmp_path: Path) -> None:
    rows = [{"query": query, "choices": ["q", "a" * 400], "gold": 1} for query in "xy"]
    model = TrigramModel(["a" * 23], max_seq_len=500)
    by_sum = run(task(tmp_path, "multiple_choice", rows, per_byte=False), model)
    per_byte = run(task(tmp_path, "multiple_choice", rows), model)
    assert (by_sum.mean, per_byte.mean) == (0.0, 1.0)
    assert by_sum.other == per_byte.other == {"accuracy": 0.0, "accuracy_per_byte": 1.0, "chance": 0.5}
    assert (by_sum.metric, per_byte.metric) == ("accuracy", "accuracy_per_byte")
    short, long = per_byte.examples[0].detail["logprobs"]
    assert long < short < 0
    assert per_byte.examples[0].detail["likeliest"] == 0


def test_per_byte_counts_bytes_and_not_characters(tmp_path: Path) -> None:
    class Fixed(TrigramModel):
        def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
            return [-3.0 if len(continuation) == 4 else -2.0 for _, continuation in pairs]

    rows = [{"query": query, "choices": ["éé", "ab"], "gold": 0} for query in "xy"]  # 4 bytes, 2 bytes
    assert run(task(tmp_path, "multiple_choice", rows), Fixed(["a"])).mean == 1.0
    assert run(task(tmp_path, "multiple_choice", rows, per_byte=False), Fixed(["a"])).mean == 0.0


class Fixed(TrigramModel):
    """A model with these log-likelihoods, whatever it is asked."""

    def __init__(self, *logprobs: float) -> None:
        super().__init__(["a"])
        self.logprobs = logprobs

    def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
        self.asked += pairs
        return [*self.logprobs] * (len(pairs) // len(self.logprobs))


def test_the_delimiter_is_scored_but_not_counted(tmp_path: Path) -> None:
    """lm-evaluation-harness: `lls / completion_len` with the choices' own lengths, here 1 and 3: -2 < -1.9."""
    rows = [{"query": query, "choices": ["a", "bcd"], "gold": 1} for query in "xy"]
    model = Fixed(-2.0, -2.0, -5.7, -5.7)  # in order of length
    result = run(task(tmp_path, "multiple_choice", rows, chat=False, delimiter=" "), model)
    assert result.mean == 1.0  # with the delimiter: -1 > -1.425
    assert result.other["accuracy"] == 0.0
    assert model.asked[0] == ([0, ord("x") + 4], [ord(" ") + 4, ord("a") + 4])


def test_a_schema_scores_the_same_ending_after_each_context(tmp_path: Path) -> None:
    rows = [{"contexts": ["an a", "an b"], "continuation": "is", "gold": gold} for gold in (0, 1)]
    config = task(tmp_path, "schema", rows, delimiter=" ")
    result = run(config, model := Fixed(-3.0, -2.0))
    assert [example.score for example in result.examples] == [0.0, 1.0]
    encode = Bytes().encode
    assert model.asked[:2] == [([0, *encode("an a")], encode(" is")), ([0, *encode("an b")], encode(" is"))]
    assert (result.metric, result.other, result.doubtful) == ("accuracy", {"chance": 0.5}, [])
    with pytest.raises(ConfigError, match="two contexts are the same"):
        run(task(tmp_path, "schema", [rows[0] | {"contexts": ["a", "a"]}] * 2), model)


def test_greedy_match_is_the_argmax_at_each_position(tmp_path: Path) -> None:
    rows = [
        {"prompt": "the sky is", "answer": "blue"},
        {"prompt": "the sky is", "answer": "blur"},
        {"prompt": "the sky is", "answer": "green"},  # likely, but not the likeliest
    ]
    model = TrigramModel(["sky is blue", "sky is blue", "grass is green"])
    result = run(task(tmp_path, "greedy_match", rows, chat=False, delimiter=" "), model)
    assert [example.score for example in result.examples] == [1.0, 0.0, 0.0]
    context, answers = [0, *Bytes().encode("the sky is")], [Bytes().encode(" " + row["answer"]) for row in rows]
    logprobs = model.loglikelihoods([(context, answer) for answer in answers])
    assert result.other["nats_per_answer"] == pytest.approx(-sum(logprobs) / 3)
    assert result.metric == "accuracy"


ROW = {"choices": ["x", "y"], "gold": 1, "continuation": "y", "answer": "y"}
FIRST_PAIRS: dict[str, Callable[[Any, Any], Any]] = {
    "multiple_choice": lambda config, row: config.pairs(row, Bytes())[1],
    "schema": lambda config, row: config.pairs(row, Bytes())[1],
    "greedy_match": lambda config, row: config.pairs_of(row, ["y"], Bytes())[0],
    "generate": lambda config, row: (config.prompt_ids(row, Bytes()), Bytes().encode(" y")),
}


@pytest.mark.parametrize("kind", FIRST_PAIRS)
def test_examples_precede_the_prompt(tmp_path: Path, kind: str) -> None:
    """As lm-evaluation-harness: `prompt + target_delimiter + target`, `fewshot_delimiter`, the row's prompt."""
    rows = [ROW | {"query": name, "prompt": name, "contexts": ["q", name]} for name in "abcd"]
    plain = {} if kind == "schema" else {"chat": False}
    config = task(tmp_path, kind, rows, shots=2, delimiter=" ", **plain)
    asked = [0, *Bytes().encode("c y\n\nd y\n\na")]
    assert FIRST_PAIRS[kind](config, read_rows(config, {}).rows[0]) == (asked, Bytes().encode(" y"))


def test_in_a_chat_examples_are_turns(tmp_path: Path) -> None:
    rows = [{"prompt": name, "answer": [name.upper(), "?"]} for name in ("a", "b", "c", "d")]
    config = task(tmp_path, "generate", rows, shots=2)
    a, c, d = (read_rows(config, {}).rows[0], *read_rows(config, {}).rows[0].shots)
    turns = [[2, ord(letter) + 4] for letter in "cCdDa"]
    assert config.prompt_ids(a, Bytes()) == [0, *(i for turn in turns for i in turn), 3]
    assert (c.columns["prompt"], d.columns["prompt"]) == ("c", "d")


def test_the_text_rooms_tokenizer_and_template(tmp_path: Path) -> None:
    tokenizer = ByteTokenizer()
    encoder = TextEncoder(tokenizer, ChatTemplate(tokenizer))
    rows = [
        {"query": "<|im_end|>?", "choices": ["a", "b"], "gold": 0},
        {"query": "q", "choices": ["a", "b"], "gold": 1},
    ]
    config = task(tmp_path, "multiple_choice", rows)
    context, choice = config.pairs(read_rows(config, {}).rows[0], encoder)[0]
    assert choice == [ord("a")]
    assert context[0] == encoder.bos_id
    assert tokenizer.decode(context, skip_special=False).endswith("<|im_start|>assistant\n")
    assert context.count(tokenizer.special_ids["<|im_end|>"]) == 1  # the template's; the one typed in the row is text
    base = TextEncoder(tokenizer)
    with pytest.raises(ConfigError, match="no chat template; set `chat: false`"):
        config.pairs(read_rows(config, {}).rows[0], base)
    plain = task(tmp_path, "multiple_choice", rows, chat=False)
    assert plain.pairs(read_rows(plain, {}).rows[1], base)[1] == ([base.bos_id, ord("q")], [ord("b")])
    tokenizer.adds_bos = False  # a published model's, whose contexts begin without
    assert plain.pairs(read_rows(plain, {}).rows[1], base)[1] == ([ord("q")], [ord("b")])
    asked = task(tmp_path, "generate", [{"prompt": prompt, "answer": "a"} for prompt in "pr"], chat=False)
    assert asked.prompt_ids(read_rows(asked, {}).rows[0], base) == [ord("p")]


class Merging(Bytes):
    """A tokenizer that joins "ab" to one id, as BPE would."""

    def encode(self, text: str) -> list[int]:
        return [260 if part == "\0" else ord(part) + 4 for part in text.replace("ab", "\0")]


def test_plain_text_is_tokenised_as_a_whole(tmp_path: Path) -> None:
    rows = [{"query": "xa", "choices": ["b", "c"], "gold": 0}, {"query": "xa", "choices": ["b", "c"], "gold": 1}]
    config = task(tmp_path, "multiple_choice", rows, chat=False)
    row = read_rows(config, {}).rows[0]
    x, a, c = (ord(letter) + 4 for letter in "xac")
    assert config.pairs(row, Merging()) == [([0, x], [260]), ([0, x, a], [c])]
    chat = task(tmp_path, "multiple_choice", rows)
    b = ord("b") + 4
    assert chat.pairs(row, Merging()) == [([0, 2, x, a, 3], [b]), ([0, 2, x, a, 3], [c])]


def test_generations_are_checked(tmp_path: Path) -> None:
    rows = [{"prompt": "sky:", "answer": "blue"}, {"prompt": "hay:", "answer": ["red", "green"]}]
    model = TrigramModel(["sky: blue", "sky: blue", "hay: green"])
    result = run(task(tmp_path, "generate", rows, chat=False, max_tokens=8), model)
    assert [example.detail["output"] for example in result.examples] == [" blue", " blue"]
    assert result.mean == 0.5
    stopped = run(task(tmp_path, "generate", rows, chat=False, max_tokens=8, stop=["l"], check="contains"), model)
    assert stopped.examples[0].detail["output"].startswith(" bl")
    assert stopped.mean == 0.0


@pytest.mark.parametrize(
    ("check", "output", "right", "expected"),
    [
        ("exact", " os.path\n", ["os.path"], True),
        ("exact", "os.path!", ["os.path"], False),
        ("exact", "b", ["a", "b"], True),
        ("exact", "b", "b", True),
        ("contains", "It is in os.path.", ["os.path"], True),
        ("contains", "It is in ospath.", ["os.path"], False),
        ("regex", "It is in ospath.", ["os.path"], False),
        ("regex", "It is in os-path.", [r"os.path\."], True),
        ("maths", r"It is \boxed{\frac{1}{2}}.", ["0.4", "0.5"], True),
        ("maths", r"It is \boxed{\frac{1}{2}}.", "0.6", False),
    ],
)
def test_checks(check: str, output: str, right: list[str] | str, expected: bool) -> None:
    task = validate(GenerationTask, {"name": "t", "kind": "generate", "rows": "r", "check": check})
    assert [verdict.score for verdict in task.verdicts([output], [right])] == [float(expected)]


def test_rows_that_do_not_fit_are_left_out_and_listed(tmp_path: Path) -> None:
    rows = [{"query": "q" * n, "choices": ["a", "b"], "gold": 0} for n in (1, 2, 90)]
    model = TrigramModel(["ab"], max_seq_len=32)
    result = run(task(tmp_path, "multiple_choice", rows), model)
    assert result.n == 2
    assert result.skipped == ["multiple_choice.jsonl:3: 93 tokens, the context holds 32"]
    with pytest.raises(ResultError, match=r"1 scored example.*skipped: multiple_choice\.jsonl:2: "):
        run(task(tmp_path, "multiple_choice", [rows[0], rows[2]]), model)
    prompts = [{"prompt": "q" * n, "answer": "a"} for n in (1, 2, 20)]
    assert run(task(tmp_path, "generate", prompts, max_tokens=16), model).n == 2


def test_a_damaged_model_is_not_scored(tmp_path: Path) -> None:
    class Broken(TrigramModel):
        def loglikelihoods(self, pairs: Sequence[Pair]) -> list[float]:
            return [self.value] * len(pairs)

        value = math.nan

    rows = [{"query": str(i), "choices": ["a", "b"], "gold": 0} for i in range(3)]
    with pytest.raises(ConfigError, match="weights are damaged"):
        run(task(tmp_path, "multiple_choice", rows), Broken(["a"]))
    Broken.value = -math.inf
    with pytest.raises(ResultError, match="not finite"):
        run(task(tmp_path, "bits_per_byte", [{"text": "a"}, {"text": "b"}]), Broken(["a"]))


def test_evaluate_writes_what_read_results_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = TrigramModel(["sky is blue"])
    choices = [{"query": f"sky {i}", "choices": ["blue", "röd"], "gold": 0} for i in range(41)]
    choices += [choices[0] | {"choices": ["blue", "blue"]}, choices[0] | {"gold": 1}]
    progress, notes = Silent(), []
    monkeypatch.setattr(progress, "note", notes.append)
    documents = task(tmp_path, "bits_per_byte", [{"text": "sky"}, {"text": "blue"}])
    config = EvalConfig(tasks=(documents, task(tmp_path, "multiple_choice", choices)))
    once, again = tmp_path / "once", tmp_path / "again"
    for out in (once, again):
        out.mkdir()
        stats = evaluate(config, {}, model, out, progress)
    result = read_results(once)
    assert [one.skipped for one in result] == [[], ["multiple_choice.jsonl:42: two choices are the same"]]
    assert (
        notes
        == [
            "task 'multiple_choice': 1 of 43 rows cannot be used and are skipped; first: "
            "multiple_choice.jsonl:42: two choices are the same",
            "task 'multiple_choice': 1 of 43 rows contradict another row; first: multiple_choice.jsonl:43: "
            "the same row as multiple_choice.jsonl:1, but for `gold`",
        ]
        * 2
    )
    assert [one.task for one in result] == list(stats) == ["bits_per_byte", "multiple_choice"]
    assert stats["multiple_choice"]["mean"] == result[1].mean
    assert result[1].examples[0].detail["answer"] == "blue"
    for name in ("results.json", "multiple_choice.jsonl", "bits_per_byte.jsonl"):
        assert (again / name).read_bytes() == (once / name).read_bytes()


def test_damaged_results_are_named(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="no evaluation here"):
        read_results(tmp_path)
    (tmp_path / "results.json").write_text('{"t": {"task": "t"}}')
    with pytest.raises(ResultError, match=r"t\.jsonl: missing"):
        read_results(tmp_path)
    (tmp_path / "t.jsonl").write_text("")
    with pytest.raises(ResultError, match="damaged evaluation"):
        read_results(tmp_path)
