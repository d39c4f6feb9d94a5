"""Episodes in rollouts: tokens and masks, the same again after a restart, faults, limits, tools, and that it learns."""

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lifecycle.core.config import ConfigError
from lifecycle.core.isolation.confine import unavailable
from lifecycle.core.progress import Silent
from lifecycle.inference.sampling import SamplingParams
from lifecycle.rl.batch import Scores
from lifecycle.rl.config import GrpoConfig
from lifecycle.rl.environment import Environment, Message, Step
from lifecycle.rl.environments import Environments
from lifecycle.rl.episodes import Episodes
from lifecycle.rl.hook import LogRollouts
from lifecycle.rl.metrics import metrics_of
from lifecycle.rl.openings import Conversations
from lifecycle.rl.rollouts import Scored
from lifecycle.rl.samples import Samples
from lifecycle.rl.sampling import Prompt, Rollout
from lifecycle.testing.jobs import StopAt
from lifecycle.testing.notes import Notes
from lifecycle.text.chat import ChatTemplate
from lifecycle.training.job import TrainJob
from lifecycle.training.loop import run_job
from lifecycle.training.objectives.objective import build_objective
from lifecycle.training.objectives.policy import SAMPLER
from tests.rl.beat import Beat
from tests.rl.toy_policy import one_device
from tests.rl.toy_talker import MODEL, TEMPLATE, TOKENIZER, batches_of, prompts, sampler_of, settings, talker

closed = pytest.mark.skipif(bool(unavailable()), reason=f"code cannot be closed off here: {unavailable()}")
END = TOKENIZER.special_ids["<|im_end|>"]
# As Qwen 2.5 writes tools, calls and results.
TOOLS = (
    "{% if tools %}{{ '<|im_start|>s' }}{% for tool in tools %}{{ tool | tojson }}{% endfor %}{{ '<|im_end|>' }}"
    "{% endif %}{% for m in messages %}{{ '<|im_start|>' + m['role'] }}"
    "{% if m['content'] %}{{ ' ' + m['content'] }}{% endif %}{% for call in m.tool_calls or [] %}"
    r"""{{ '<tool_call>\n{"name": "' + call.function.name + '", "arguments": ' }}"""
    r"{{ call.function.arguments | tojson }}{{ '}\n</tool_call>' }}{% endfor %}"
    "{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant' }}{% endif %}"
)


@pytest.mark.slow
def test_tokens_are_those_of_the_rendered_conversation() -> None:
    scored = sampler_of(settings()).sample(0, talker(), prompts(settings())[:4])
    told = [
        rollout for rollout in scored.rollouts
        if rollout.played is not None and all(message["content"] for message in rollout.played.messages)
    ]  # fmt: skip
    assert sum(rollout.played.turns == 3 for rollout in told if rollout.played is not None) > 10
    for rollout in told:
        assert rollout.played is not None and isinstance(rollout.prompt.text, list)
        whole = TEMPLATE.render([*rollout.prompt.text, *rollout.played.messages])
        assert [*rollout.prompt.ids, *rollout.ids] == whole.ids
        assert [False] * len(rollout.prompt.ids) + list(rollout.is_own) == whole.assistant_mask
        assert not any(value for value, own in zip(rollout.logprobs, rollout.is_own, strict=True) if not own)
    assert scored.scores.values["Beat"] == pytest.approx([r.played.reward if r.played else 0 for r in scored.rollouts])


@pytest.mark.slow
@pytest.mark.parametrize(
    "own",
    [{}, pytest.param({"temperature": 0.8, "top_k": 12, "top_p": 0.9}, marks=pytest.mark.long)],
    ids=["whole", "cut"],
)
def test_the_trainer_learns_the_models_own_tokens_and_agrees_on_their_likelihood(own: dict[str, Any]) -> None:
    config = settings(**own)
    made = batches_of(config, None).of_step(0, talker())
    batch, scored = made.batch, made.scored
    assert scored is not None
    assert batch["loss_mask"].sum() == sum(sum(rollout.is_own) for rollout in scored.rollouts)
    for row, place in np.argwhere(batch["group_mask"] > 0):
        rollout = scored.rollouts[int(batch["group_ids"][row, place])]
        where = batch["segment_ids"][row] == place + 1
        assert batch["tokens"][row, where].tolist() == [*rollout.prompt.ids, *rollout.ids]
        learned = where & (batch["loss_mask"][row] > 0)
        written = [token for token, is_own in zip(rollout.ids, rollout.is_own, strict=True) if is_own]
        assert batch["targets"][row, learned].tolist() == written
        np.testing.assert_allclose(
            batch[SAMPLER][row, learned],
            [value for value, is_own in zip(rollout.logprobs, rollout.is_own, strict=True) if is_own],
        )
    columns = {name: jnp.asarray(column) for name, column in batch.items()}
    sums = jax.jit(build_objective(MODEL, config))(talker(), columns)
    assert (
        sums.metrics["sampling/sampling_logp_difference/mean"] / sums.counts["sampling/sampling_logp_difference/mean"]
        < 1e-5
    )


def run(out: Path, progress: Silent, config: GrpoConfig) -> dict[str, Any]:
    batches = batches_of(config, talker())
    job = TrainJob(MODEL, config, one_device(), build_objective(MODEL, config), batches, talker(), out)
    return run_job(job, progress, [LogRollouts(batches, Samples(out, progress), progress)])


@pytest.mark.long
def test_a_run_that_is_stopped_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    config = settings(num_iterations=2)
    whole = run(tmp_path / "whole", Silent(), config)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped", StopAt(3), config)
    assert run(tmp_path / "stopped", Silent(), config)["params_hash"] == whole["params_hash"]


@pytest.mark.long
def test_an_environment_is_learned(tmp_path: Path) -> None:
    learning = {"steps": 25, "checkpoint": {"every": 25}, "eval_every": 25}
    run(tmp_path, Silent(), settings(**learning))
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    rewards = [record["reward"] for record in records if "reward" in record]
    assert np.mean(rewards[:4]) < 2.2 and np.mean(rewards[-4:]) > 2.6  # of 3
    newest = next(record for record in reversed(records) if "rewards/Beat/mean" in record)
    assert newest["episodes/turns"] == pytest.approx(3, abs=0.3) and newest["completions/mean_length"] < 8
    assert "user: " in (tmp_path / "rollouts.jsonl").read_text()


class Fragile(Beat):
    """Fails at times: as it begins, or in its second turn."""

    def reset(self, row: Any) -> list[Message]:
        if self.seed % 3 == 0:
            raise ValueError("at the beginning")
        return super().reset(row)

    def step(self, answer: Message) -> Step:
        if self.seed % 3 == 1 and self.left == 2:
            raise ValueError("later")
        return super().step(answer)


@pytest.mark.slow
def test_nothing_is_learned_of_a_faulty_episode() -> None:
    config = settings(episodes={"environment": f"{__file__}:Fragile"}, entropy_weight=0.1, beta=0.1, loss="dapo")
    batches = batches_of(config, talker(), prompts(settings()))
    made = batches.of_step(0, talker())
    assert made.scored is not None
    faults = [rollout.fault for rollout in made.scored.rollouts]
    assert {"ValueError: at the beginning", "ValueError: later", ""} == set(faults)
    sound = [sum(rollout.is_own) for rollout in made.scored.rollouts if not rollout.fault]
    assert made.batch["loss_mask"].sum() == sum(sound) > 0
    sums = jax.jit(build_objective(MODEL, config))(talker(), {n: jnp.asarray(c) for n, c in made.batch.items()})
    assert np.isfinite(float(sums.loss))


class Scripted(Environment):
    """Does what the row says, and hears what a script has for the model."""

    made: ClassVar[list["Scripted"]] = []

    def __init__(self) -> None:
        self.is_closed = False
        self.made.append(self)

    def reset(self, row: Any) -> list[Message]:
        self.answers = iter(row["answers"])
        row["answers"] = "mine"  # nobody else's
        return row.get("first", [{"role": "user", "content": "q"}])

    def step(self, answer: Message) -> Step:
        do = next(self.answers)
        if do == "raise":
            raise LookupError(f"no {answer['content']}")
        if do == "hang":
            time.sleep(3)
        if isinstance(do, str):
            return Step([{"role": "user", "content": do}], reward=0.5)
        return do

    def close(self) -> None:
        self.is_closed = True


DONE = Step(reward=1.0, done=True)


def played(
    says: Sequence[str], rows: Sequence[dict[str, Any]], template: ChatTemplate = TEMPLATE, **own: Any
) -> tuple[list[Rollout], Episodes]:
    """Episodes of rows with a model that says the same in each: a text a turn, which ends with ~ if it is cut."""
    episodes = {"environment": f"{__file__}:Scripted", "timeout_s": 1}
    config = settings(
        **{"episodes": episodes, "seq_len": 256, "max_prompt_tokens": 60, "max_completion_tokens": 60} | own
    )
    player = Episodes(config, Conversations(template))
    asked = [Prompt(number, [0], "p", row) for number, row in enumerate(rows)]
    seen: list[list[int]] = []

    def answer(prompts: Sequence[Prompt], each: Sequence[SamplingParams]) -> list[Rollout]:
        seen.append([one.seed or 0 for one in each])
        text = says[len(seen) - 1]
        ids = [*TOKENIZER.encode(text.strip("~")), *([] if text.endswith("~") else [END])]
        parts = [ids[: own.max_tokens] for own in each]
        return [
            Rollout(prompt, part, [-1.0] * len(part), text.strip("~"), text.endswith("~"))
            for prompt, part in zip(prompts, parts, strict=True)
        ]

    rollouts = player.played(asked, [SamplingParams(seed=7 + n) for n in range(len(rows))], answer)
    assert set(seen[0]) <= {7 + n for n in range(len(rows))}  # the first turn has the sample's own seed
    seeds = [seed for turn in seen for seed in turn]
    assert len(set(seeds)) == len(seeds)
    return rollouts, player


def counted(rollouts: Sequence[Rollout]) -> Scores:
    return Scores({"length": [float(len(r.ids)) for r in rollouts]}, [float(len(r.ids)) for r in rollouts], {})


def test_a_faulty_environment_costs_its_own_episode() -> None:
    numpy_number: Any = np.float32(2)
    rows: list[dict[str, Any]] = [
        {"answers": ["a", DONE]}, {"answers": ["raise"]}, {"answers": ["a", "raise"]}, {"answers": ["hang"]},
        {"answers": [3]}, {"answers": [Step()]}, {"answers": [Step(reward=float("nan"))]},
        {"answers": [Step([{"role": "assistant", "content": "b"}])]}, {"answers": [Step([{"role": "thing"}])]},
        {"answers": [Step([{"role": "user", "content": "b", "of": {1, 2}}])]},
        {"answers": [], "first": []}, {"answers": [], "first": [{"role": "user", "content": "long" * 20}]}, {},
        {"answers": [Step(reward=numpy_number, done=True)]},
    ]  # fmt: skip
    rollouts, player = played(["x", "y"], rows)
    why = [rollout.fault for rollout in rollouts]
    assert [number for number, fault in enumerate(why) if not fault] == [0, 13]
    expected = [
        "LookupError: no x", "LookupError: no y", "no answer in 1 s", "step returned int", "not done", "finite number",
        "as the assistant", "unknown role", "no JSON", "one at least", "longer than max_prompt_tokens=60", "KeyError",
    ]  # fmt: skip
    assert all(part in fault for part, fault in zip(expected, why[1:13], strict=True)), why
    assert rows[0]["answers"] == ["a", DONE]
    asked: list[int] = []

    def score(sound: Sequence[Rollout]) -> Scores:
        asked.append(len(sound))
        return counted(sound)

    scores = player.scored(rollouts, score)
    assert asked == [2]
    assert scores.values["Scripted"] == pytest.approx([1.5, *[np.nan] * 12, 2.0], nan_ok=True)
    assert scores.totals == pytest.approx([1.5 + len(rollouts[0].ids), *[np.nan] * 12, 2 + 2], nan_ok=True)
    assert scores.faults["Scripted"].total() == 12
    assert scores.faults["Scripted"]["LookupError: no x"] == 2  # the first of its kind
    metrics = metrics_of(Scored(rollouts, scores, 0, 0), 1)
    assert metrics["rewards/Scripted/faults"] == 12 and metrics["frac_unscored"] == pytest.approx(12 / 14)
    player.close()
    assert rollouts[0].played is not None
    own = [one for one in type(rollouts[0].played.environment).made if one.is_closed]  # type: ignore[attr-defined]
    assert len(own) == 14  # the one that hung has another in its place


def test_what_is_no_environment_is_told() -> None:
    class Unmade(Scripted):
        def __init__(self) -> None:
            raise ConnectionRefusedError("game server at :1234")

    with pytest.raises(ValueError, match=r"made: ConnectionRefusedError: game server at :1234$"):
        Environments(Unmade, 5.0).reset([{}], [0])

    class Tools(Scripted):
        tools = ({"type": "function", "function": {"name": "f", "parameters": {1, 2}}},)

    [said] = Environments(Tools, 5.0).reset([{"answers": []}], [0])
    assert "tools are no JSON" in said.fault
    huge = Environments(Scripted, 5.0)
    huge.reset([{"answers": [Step(reward=10**400, done=True)]}], [0])
    [said] = huge.step([0], [{"role": "assistant", "content": ""}])
    assert "expected a finite number" in said.fault


def test_limits_end_an_episode_with_what_the_model_saw() -> None:
    [by_turns], _ = played(["x", "y"], [{"answers": ["a", "b"]}],
                           episodes={"environment": f"{__file__}:Scripted", "max_turns": 2})  # fmt: skip
    assert by_turns.played is not None and (by_turns.is_cut, by_turns.played.turns) == (False, 2)
    assert [m["content"] for m in by_turns.played.messages] == ["x", "a", "y"]
    [cut], _ = played(["x", "y~"], [{"answers": ["a", "b"]}])
    assert cut.is_cut and not cut.fault and cut.ids[-1] == ord("y") and cut.played is not None
    assert cut.played.reward == 1.0  # the environment heard the part
    [full], _ = played(["x"], [{"answers": ["a" * 53, "b"]}])  # 2 + 58 tokens leave no room for an answer
    assert full.is_cut and full.ids == [ord("x"), END] and full.played is not None
    assert [m["content"] for m in full.played.messages] == ["x"]
    [fits], _ = played(["x", "y"], [{"answers": ["a" * 52, "b"]}])
    assert not fits.fault and len(fits.ids) == 60
    assert settings(mask_truncated=True).mask_truncated


def test_an_answer_that_says_nothing_keeps_its_place() -> None:
    [rollout], _ = played(["", "y"], [{"answers": ["a", DONE]}])
    assert rollout.ids == [END, *TEMPLATE.render([{"role": "user", "content": "a"}], True).ids, ord("y"), END]
    assert rollout.played is not None and rollout.played.messages[0]["content"] == ""


def add(a: int, b: int) -> int:
    """The sum."""
    return a + b


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": 3}}\n</tool_call>'
TOLD: dict[str, Any] = {"episodes": {"tools": [f"{__file__}:add"]}, "rewards": [{"name": "contains"}],
                        "seq_len": 1024, "max_prompt_tokens": 512, "max_completion_tokens": 512}  # fmt: skip


def test_tools_are_called_and_answer() -> None:
    template = ChatTemplate(TOKENIZER, TOOLS)
    texts = [CALL, '<tool_call>\n{"name": "add", "arguments": {"a": 2, "b": "x"}}\n</tool_call>', " It is 5."]
    [rollout], player = played(texts, [{"answer": "5"}], template, **TOLD)
    assert rollout.played is not None and not rollout.fault
    said = rollout.played.messages
    assert [message["role"] for message in said] == ["assistant", "tool", "assistant", "tool", "assistant"]
    assert said[1]["content"] == "5" and said[3]["content"].startswith("Error: ") and said[4]["content"] == " It is 5."
    assert said[0]["tool_calls"][0]["function"] == {"name": "add", "arguments": '{"a": 2, "b": 3}'}
    assert rollout.played.calls == [2, 1]
    assert TOKENIZER.decode(rollout.prompt.ids, skip_special=False).count('"add"') == 1
    text = TOKENIZER.decode(rollout.ids, skip_special=False)
    assert text.startswith(CALL + "<|im_end|><|im_start|>tool 5<|im_end|><|im_start|>assistant<tool_call>")
    own = bytes(token for token, is_own in zip(rollout.ids, rollout.is_own, strict=True) if is_own and token < 256)
    assert own.decode() == "".join(texts)
    scores = player.scored([rollout], counted)
    assert scores.values.keys() == {"length"}  # tools give no reward of their own
    metrics = metrics_of(Scored([rollout], scores, 0, 0), 1)
    assert (metrics["tools/call_frequency"], metrics["tools/failure_frequency"]) == (2, 0.5)


@pytest.mark.parametrize("arguments", ["[1]", '{"a": 1,, }', '"x"'])
def test_a_call_that_is_no_json_is_answered_with_the_error(arguments: str) -> None:
    broken = '<tool_call>\n{"name": "add", "arguments": ' + arguments + "}\n</tool_call>"
    [rollout], _ = played([broken, "well"], [{"answer": "5"}], ChatTemplate(TOKENIZER, TOOLS), **TOLD)
    assert not rollout.fault and rollout.played is not None
    assert rollout.played.turns == 1 or rollout.played.messages[1]["content"].startswith("Error: ")


@closed
def test_the_python_tool_is_used_by_name_alone() -> None:
    code = '<tool_call>\n{"name": "python", "arguments": {"code": "6 * 7"}}\n</tool_call>'
    told = TOLD | {"episodes": {"tools": ["python"]}}
    [rollout], _ = played([code, "42"], [{"answer": "42"}], ChatTemplate(TOKENIZER, TOOLS), **told)
    assert rollout.played is not None and rollout.played.messages[1]["content"] == "42\n"


def test_settings_of_episodes() -> None:
    with pytest.raises(ConfigError, match="no rewards"):
        settings(episodes={"tools": ["python"]})
    with pytest.raises(ConfigError, match="either an environment"):
        settings(episodes={"tools": ["python"], "environment": "a.py:B"})
    with pytest.raises(ConfigError, match="either an environment"):
        settings(episodes={"max_turns": 2})
    with pytest.raises(ConfigError, match="weight is that of an environment"):
        settings(episodes={"tools": ["python"], "weight": 2}, rewards=[{"name": "exact"}])
    with pytest.raises(ConfigError, match="tools"):
        settings(episodes={"tools": ["pyton"]}, rewards=[{"name": "exact"}])
    with pytest.raises(ConfigError, match="both logged as 'tools'; give the reward a `label`"):
        settings(episodes={"tools": ["python"]}, rewards=[{"name": "exact", "label": "tools"}])
    for name, says in (("DONE", "makes|cannot|no function"), ("missing", "defines no 'missing'")):
        with pytest.raises(ConfigError, match=says):
            prompts(settings(episodes={"environment": f"{__file__}:{name}"}))
    with pytest.raises(ConfigError, match="two are called 'add'"):
        prompts(settings(**TOLD | {"episodes": {"tools": [f"{__file__}:add"] * 2}}))
    with pytest.raises(ConfigError, match="say the type of 'own'"):
        prompts(settings(**TOLD | {"episodes": {"tools": [f"{__file__}:played"]}}))


def test_what_is_run_is_in_the_fingerprint(tmp_path: Path) -> None:
    code = tmp_path / "own.py"
    code.write_text("class Own: ...")

    def fingerprint(**own: Any) -> Any:
        episodes = settings(episodes={"environment": f"{code}:Own"} | own).episodes
        assert episodes is not None
        return episodes.fingerprint

    before = fingerprint()
    assert fingerprint(max_turns=3) != before and fingerprint(weight=2) != before
    code.rename(code := tmp_path / "moved.py")
    assert fingerprint() == before
    code.write_text("class Own: pass")
    assert fingerprint() != before


def test_faults_of_one_kind_are_told_once() -> None:
    notes = Notes()
    hook = LogRollouts(None, Samples(Path(), notes), notes)  # type: ignore[arg-type]
    for step, word in enumerate(("a", "b")):
        hook._warn_of_faults("Beat", {f"ValueError: {word}": 2, "no answer in 1 s": 1}, 8, step)
    assert len(notes.notes) == 2 and "ValueError: a: 2 of 8" in notes.notes[0]
