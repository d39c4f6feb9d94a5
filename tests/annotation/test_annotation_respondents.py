"""Who answers: a model in this process and one at a server, whatever is asked beside it; thoughts are no answer."""

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from lifecycle.annotation.respondents import (
    AHEAD,
    EngineRespondent,
    Question,
    Sampled,
    ServerRespondent,
    answers,
    without_thoughts,
)
from lifecycle.cli.respondents import Asking, respondent
from lifecycle.core.config import ConfigError
from lifecycle.evals.chat_client import Answer, AskError
from lifecycle.inference.engine import Engine
from lifecycle.testing.models import SERVED, random_model
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, TEMPLATE_FILE
from lifecycle.weights.published import save_weights
from tests.annotation.conftest import client
from tests.rl.judging_server import judging
from tests.web_server import QuietHandler, answering


def question(number: int, text: str = "") -> Question:
    return Question(f"key{number}", text or f"question {number}", {})


@pytest.mark.slow
def test_our_own_engine_answers_each_question_by_its_key() -> None:
    asked = [question(number) for number in range(6)]
    found: list[dict[str, Answer | AskError]] = []
    with Engine(random_model(**SERVED), 2, 2 * AHEAD) as engine:
        own = EngineRespondent(engine, Sampled(1.0, 6, seed=3))
        for some in ([*asked, question(9, "x" * 9999)], asked[::-1]):
            found.append({question.key: answer for question, answer in answers(own, some)})
    too_long = found[0].pop("key9")
    assert found[0] == found[1] and len(found[0]) == 6 and len({*map(str, found[0].values())}) > 1
    said = [answer for answer in found[0].values() if isinstance(answer, Answer)]
    assert len(said) == 6 and {answer.finish_reason for answer in said} <= {"stop", "length"}
    assert isinstance(too_long, AskError) and not too_long.may_pass


def test_questions_are_taken_as_they_are_needed() -> None:
    taken, gate = 0, threading.Event()

    def questions() -> Iterator[Question]:
        nonlocal taken
        for number in range(500):
            taken += 1
            yield question(number)

    with judging(lambda _: (200, str(gate.wait(30)))) as (address, asked):
        own = ServerRespondent(client(address, concurrency=2), Sampled(0.5, 7, seed=1))
        found = answers(own, questions())
        threading.Timer(0.05, gate.set).start()
        next(found)
        assert taken == 2 * AHEAD and len(asked) <= 2 * AHEAD
        assert len([*found]) == 499 and taken == 500
    assert all((body["temperature"], body["max_tokens"]) == (0.5, 7) for body in asked)
    assert len({body["seed"] for body in asked}) > 490 and all(0 <= body["seed"] < 2**31 for body in asked)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("An answer.", "An answer."), ("<think>\nGrade: 1?\n</think>\n\nGrade: 4", "Grade: 4"),
        ("so, Grade: 1?\n</think>\n\nGrade: 4", "Grade: 4"), ("[THINK]a[/THINK]b", "b"), ("<think>cut off", ""),
        ("Marks are <think> and </think> here.", "Marks are <think> and </think> here."),
    ],
)  # fmt: skip
def test_thoughts_are_no_answer(text: str, said: str) -> None:
    assert without_thoughts(text) == said


@pytest.mark.slow
def test_a_bundle_is_asked_by_its_folder(tmp_path: Path) -> None:
    model, bundle = random_model(num_layers=1), tmp_path / "bundle"
    bundle.mkdir()
    save_weights(model.config, model.params, bundle)
    ByteTokenizer().save(bundle)
    (bundle / TEMPLATE_FILE).write_text(DEFAULT_TEMPLATE)
    sampled = Asking(max_tokens=5).sampled(temperature=0, max_tokens=99)
    with respondent(tmp_path / "no.yaml", (), str(bundle), Asking(concurrency=2), sampled) as own:
        assert own.name and own.concurrency == 2 * AHEAD
        ((_, answer),) = answers(own, [question(0)])
    assert isinstance(answer, Answer)
    with (
        pytest.raises(ConfigError, match="no such config file"),
        respondent(tmp_path / "no.yaml", (), "production", Asking(), sampled),
    ):
        pass


@pytest.mark.parametrize(
    ("status", "body", "says"),
    [
        (200, b'{"choices": [{"message": null}]}', "no message"),
        (200, b'{"choices": [{"message": "a"}]}', "no message"),
        (200, b"[" * 500_000, "RecursionError"),
        (500, b"no chunk\r\n", "HTTP 500: Internal Server Error"),
        (503, b"x" * 99_999, "HTTP 503: xxx"),
    ],
)
def test_an_answer_that_is_none_of_the_api_s_is_no_answer(status: int, body: bytes, says: str) -> None:
    class Odd(QuietHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(status)
            how = ("Transfer-Encoding", "chunked") if status == 500 else ("Content-Length", str(len(body)))
            self.send_header(*how)
            self.send_header("Retry-After", "9" * 5000)
            self.end_headers()
            self.wfile.write(body)

    with answering(Odd) as address:
        found = client(address, tries=2).ask({"messages": []})
    assert isinstance(found, AskError) and found.may_pass and says in str(found)
