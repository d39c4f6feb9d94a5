"""Processes that share an engine keep in step: here as threads, over real sockets, each with a runner of its own."""

import socket
import threading
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lifecycle.core.channel import Connection, Peer
from lifecycle.core.config import ConfigError
from lifecycle.core.rendezvous import JobError
from lifecycle.inference.adapters import BankSizes, HeldAdapter
from lifecycle.inference.drafting import Ngram
from lifecycle.inference.engine import Engine
from lifecycle.inference.following import UNLIMITED, Follower
from lifecycle.inference.generation import EngineError
from lifecycle.inference.hosts import Leader
from lifecycle.inference.model import Model
from lifecycle.inference.runner import Runner
from lifecycle.inference.sampling import SamplingParams
from lifecycle.inference.turns import Witness
from lifecycle.model.config import ModelConfig
from lifecycle.testing.adapters import random_adapter
from lifecycle.testing.models import random_model
from lifecycle.testing.waiting import LIMIT_S, wait_until
from lifecycle.weights.adapters import Adapter, AdapterError, save_adapter
from tests.engine_turns import held

SLOTS = 2
CACHE = 384  # tokens: three pages, of which two long requests need four; one number for all tests
DRAFTER = Ngram(num_tokens=3)  # as in the tests of drafts; whether a dispatch drafts is decided by a clock
GREEDY = SamplingParams(temperature=0.0, max_tokens=12, stop_ids=())
DIGITS = "start: /[0-9]{2,40}/"


@dataclass
class Job:
    """Process 0 and one other."""

    leader: Leader
    follower: Follower
    thread: threading.Thread
    ends: tuple[Connection, Connection]
    lost: list[str]
    raised: list[JobError]

    def engine(self, model: Model, name: str = "model", adapters: BankSizes | None = None) -> Engine:
        with self.leader.opening(name):
            return Engine(model, SLOTS, cache_tokens=CACHE, drafter=DRAFTER, leader=self.leader, adapters=adapters)

    def cut(self) -> None:
        """As where one of them is killed."""
        self.ends[0]._socket.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        self.leader.close(is_ok=True)
        self.thread.join(LIMIT_S)


@contextmanager
def job_of(build: Callable[[str, Witness], Runner]) -> Generator[Job]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = Connection(socket.create_connection(server.getsockname()), Peer(0, "here"))
        ours = Connection(server.accept()[0], Peer(1, "here"))
    lost: list[str] = []
    raised: list[JobError] = []
    follower = Follower(theirs, build, Peer(1, "here"), partial(lost.append, "leader"))

    def run() -> None:
        try:
            follower.run()
        except JobError as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    leader = Leader([ours], partial(lost.append, "follower"), partial(lost.append, "stop"))
    job = Job(leader, follower, thread, (ours, theirs), lost, raised)
    thread.start()
    try:
        yield job
    finally:
        job.end()


def following(model: Model, adapters: BankSizes | None = None) -> Callable[[str, Witness], Runner]:
    settings: dict[str, Any] = {"cache_tokens": CACHE, "drafter": DRAFTER, "adapters": adapters}
    return lambda _, witness: Runner(model, SLOTS, UNLIMITED, witness=witness, **settings)


def alone(model: Model, prompts: Sequence[Sequence[int]], params: Sequence[SamplingParams]) -> list[list[int]]:
    """The tokens that one process makes."""
    with Engine(model, SLOTS, cache_tokens=CACHE, drafter=DRAFTER) as engine:
        generations = [engine.submit(*pair) for pair in zip(prompts, params, strict=True)]
        return [generation.wait().token_ids for generation in generations]


@pytest.fixture(scope="module")
def tiny() -> Model:
    return random_model(version="v0")


@pytest.mark.slow
def test_a_burst_with_all_that_requests_may_ask_keeps_both_in_step(tiny: Model) -> None:
    """More requests than slots, too few pages for two long ones, some cancelled before, during and after their turns:
    each dispatch is compared, and what comes out is what one process makes."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 250, size).tolist() for size in draw.integers(1, 200, 30)]
    kinds = [
        {}, {"temperature": 1.0, "seed": 2**64 - 1}, {"priority": -1}, {"prompt_logprobs": 2}, {"grammar": DIGITS},
        {"logit_bias": ((65, 5.0),), "stop": ("B",)}, {"max_tokens": 100},
    ]  # fmt: skip
    params = [GREEDY.model_copy(update=kinds[n % len(kinds)]) for n in range(30)]
    with job_of(following(tiny)) as job, job.engine(tiny) as engine:
        vector = engine.embed(prompts[0], "mean")
        unseeded = engine.submit(prompts[1], GREEDY.model_copy(update={"temperature": 1.5}))
        with held(engine):
            generations = [
                engine.submit(*pair, prediction=prompts[n - 1] if n % 3 == 0 else ())
                for n, pair in enumerate(zip(prompts, params, strict=True))
            ]
            for number in (0, 7, 29):
                generations[number].cancel()
        assert next(iter(generations[6]))
        generations[6].cancel()
        answers = [generation.wait() for generation in generations[:6] + generations[7:]]
        assert vector.wait() and len(unseeded.wait().tokens) == 12
        assert engine.stats.given_up
        engine.close()
        job.end()
        assert not job.raised and not job.lost
    whole = [n for n in range(30) if n not in (0, 6, 7, 29)]
    expected = alone(tiny, [prompts[n] for n in whole], [params[n] for n in whole])
    assert [answers[n - (n > 6)].token_ids for n in whole] == expected
    with Engine(tiny, SLOTS, cache_tokens=CACHE, drafter=DRAFTER) as engine:
        own = engine.embed(prompts[0], "mean")
        assert own.wait() and own.vector is not None and vector.vector is not None
    np.testing.assert_array_equal(vector.vector, own.vector)


@pytest.mark.slow
def test_two_models_take_their_turns_one_at_a_time(tiny: Model) -> None:
    other = random_model(seed=1, version="v1")
    models = iter((tiny, other))
    with job_of(lambda name, witness: following(next(models))(name, witness)) as job:
        with job.engine(tiny) as first, job.engine(other) as second:
            pairs = [(first.submit([n], GREEDY), second.submit([n], GREEDY)) for n in range(1, 9)]
            answers = [[one.wait().token_ids for one in pair] for pair in pairs]
        job.end()
        assert not job.raised and not job.lost
    for n, model in enumerate((tiny, other)):
        assert [pair[n] for pair in answers] == alone(model, [[n] for n in range(1, 9)], [GREEDY] * 8)


@pytest.mark.slow
def test_a_process_that_computes_something_else_ends_the_job_before_it_launches_it(tiny: Model) -> None:
    wrong = replace(tiny, params=random_model(seed=1).params)
    with job_of(following(wrong)) as job, job.engine(tiny) as engine:
        with pytest.raises(EngineError):
            engine.submit([65], GREEDY).wait()
        wait_until(lambda: not engine.is_alive)
        with pytest.raises(EngineError):
            engine.submit([65], GREEDY)
        found = str(job.leader.lost(LIMIT_S))
        assert "process 1 on here is out of step in turn 1: it has come to a dispatch of DecodeRows" in found
        job.thread.join(LIMIT_S)
        assert "out of step" in str(job.raised[0])


def test_a_lost_process_fails_the_requests_and_the_next_ones(tiny: Model) -> None:
    with job_of(following(tiny)) as job, job.engine(tiny) as engine:
        assert engine.submit([65], GREEDY).wait()
        job.cut()
        with pytest.raises(EngineError):
            engine.submit([65], GREEDY.model_copy(update={"max_tokens": 200})).wait()
        problem = job.leader.lost(LIMIT_S)
        assert problem is not None and problem.is_lost and "process 1 on here was lost" in str(problem)
        assert "follower" in job.lost and not engine.is_alive


def test_the_others_end_when_process_0_does(tiny: Model) -> None:
    with job_of(following(tiny)) as job:
        with job.engine(tiny) as engine:
            assert engine.submit([65], GREEDY).wait()
        job.cut()
        job.thread.join(LIMIT_S)
        assert "leader" in job.lost and "process 0 on here was lost" in str(job.raised[0])


def test_an_error_of_process_0_is_not_said_twice(tiny: Model) -> None:
    with job_of(following(tiny)) as job:
        job.leader.close(is_ok=False)
        job.cut()  # once it has said why
        job.thread.join(LIMIT_S)
        (error,) = job.raised
        assert isinstance(error, JobError) and error.is_told and not error.is_lost


def test_a_model_is_opened_in_all_processes_or_in_none(tiny: Model) -> None:
    """And the server goes on: an alias that cannot be loaded is left out."""

    def build(name: str, witness: Witness) -> Runner:
        if name == "theirs":
            raise ValueError("no weights here")
        return following(replace(tiny, version=name))(name, witness)

    with job_of(build) as job:
        with (
            pytest.raises(ConfigError, match="process 1 on here: ValueError: no weights here"),
            job.leader.opening("theirs"),
        ):
            Engine(tiny, SLOTS, leader=job.leader)
        with pytest.raises(ConfigError, match="version v1 of the model"), job.leader.opening("v1"):
            Engine(tiny, SLOTS, leader=job.leader)
        with pytest.raises(ZeroDivisionError), job.leader.opening("ours"):
            raise ZeroDivisionError
        with job.engine(tiny, "v0") as engine:
            assert engine.submit([65], GREEDY).wait().tokens
        job.end()
        assert not job.raised and not job.lost


BANK = BankSizes(1, 2)


@pytest.mark.long
def test_adapters_come_to_all_processes_between_turns(tiny: Model, tmp_path: Path) -> None:
    """While requests run: also where one is unloaded before its request begins, and another takes its place."""
    for seed in (1, 2):
        save_adapter(tiny.config, random_adapter(tiny.config, seed, BANK.rank), tmp_path / str(seed), "base")
    with Engine(tiny, SLOTS, cache_tokens=CACHE, drafter=DRAFTER, adapters=BANK) as engine:
        expected = [said(engine, None)]
        for seed in (1, 2):
            held = engine.load_adapter(tmp_path / str(seed))
            expected.append(said(engine, held))
            unload(engine, held)
    with job_of(following(tiny, BANK)) as job, job.engine(tiny, adapters=BANK) as engine:
        running = [engine.submit([70 + n], GREEDY.model_copy(update={"max_tokens": 100})) for n in range(8)]
        for _ in range(2):
            for seed in (1, 2):
                held = engine.load_adapter(tmp_path / str(seed))
                plain, own = engine.submit([65], GREEDY), engine.submit([65], GREEDY, held)
                vector = engine.embed([65], "last", held)
                unload(engine, held)
                assert [plain.wait().token_ids, own.wait().token_ids] == [expected[0], expected[seed]]
                assert vector.wait()
        assert all(len(asked.wait().tokens) == 100 for asked in running)
        engine.close()
        job.end()
        assert not job.raised and not job.lost


@pytest.mark.slow
def test_an_adapter_is_loaded_in_all_processes_or_in_none(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the server goes on, with its place free."""
    folder, own = tmp_path / "adapter", random_adapter(tiny.config, 1, BANK.rank)
    save_adapter(tiny.config, own, folder, "base")

    def missing(_: object, folder: Path) -> Adapter:
        raise AdapterError(f"{folder}: no adapter_config.json here")

    def other(config: ModelConfig, _: Path) -> Adapter:
        return random_adapter(config, 2, BANK.rank)

    with job_of(following(tiny, BANK)) as job, job.engine(tiny, adapters=BANK) as engine:
        for reading, said_of_it in (
            (missing, "process 1 on here: AdapterError: .*: no adapter_config.json here"),
            (other, "process 1 on here: it has version .* of the adapter, and process 0 another one"),
        ):
            with monkeypatch.context() as patch:
                patch.setattr("lifecycle.inference.following.read_adapter", reading)
                with pytest.raises(AdapterError, match=said_of_it):
                    engine.load_adapter(folder)
            assert engine.submit([65], GREEDY).wait().tokens
        with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
            engine.load_adapter(tmp_path)
        held = engine.load_adapter(folder)
        assert engine.submit([65], GREEDY, held).wait().tokens
        with pytest.raises(AdapterError, match="all 1 places"):
            engine.load_adapter(folder)
        engine.close()
        job.end()
        assert not job.raised and not job.lost


def said(engine: Engine, adapter: HeldAdapter | None) -> list[int]:
    return engine.submit([65], GREEDY, adapter).wait().token_ids


def unload(engine: Engine, adapter: HeldAdapter) -> None:
    assert engine.adapters is not None
    engine.adapters.unload(adapter)


def test_another_process_asks_process_0_to_stop(tiny: Model) -> None:
    with job_of(following(tiny)) as job:
        job.follower.ask_to_stop()
        wait_until(lambda: job.lost == ["stop"])
