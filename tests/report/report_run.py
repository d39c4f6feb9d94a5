"""Finished runs of several graphs, small and made up, but of real artifacts: what the tests of the report read."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from lifecycle.core.artifact import Artifact, Draft
from lifecycle.core.timesheet import Timesheet
from lifecycle.data.selecting.contamination import FILE as CONTAMINATION
from lifecycle.data.selecting.contamination import HITS
from lifecycle.evals.results import EvalResult, ScoredExample, summarise, write_results
from lifecycle.inference.model import Model
from lifecycle.model.config import ModelConfig
from lifecycle.model.counts import forward_flops_per_token, num_params
from lifecycle.ops.cost import PriceConfig
from lifecycle.report.blocks import Exchange
from lifecycle.report.numbers import Numbers, collect
from lifecycle.report.trained import TrainedStage
from lifecycle.testing.families import random_params
from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import ChatTemplate
from lifecycle.weights.published import save_weights

NASTY = "</td></p><script>alert(1)</script> & | `x` <b>*bold* [a](http://b)"
TOKENIZER = ByteTokenizer()
MODEL = ModelConfig(
    vocab_size=TOKENIZER.vocab_size, d_model=16, d_ff=32, num_layers=1, num_heads=1, num_kv_heads=1, head_dim=16,
    max_seq_len=192,
)  # fmt: skip
SIZES = [100, 300, 200, 400]  # bytes of the held-out documents
PEAK = 1e11


def text_result(task: str, scores: list[float], sizes: list[int] | None = None) -> EvalResult:
    rows = enumerate(zip(scores, sizes or SIZES, strict=True))
    examples = [ScoredExample(id=str(i), score=score, weight=weight) for i, (score, weight) in rows]
    return summarise(task, "bits_per_byte", "bits_per_byte", "d", examples, higher_is_better=False)


def choice_result(right: int) -> EvalResult:
    examples = [ScoredExample(id=str(i), score=float(i < right)) for i in range(40)]
    return summarise("choice", "multiple_choice", "accuracy", "c", examples, other={"chance": 0.25})


class Run:
    """A finished run in a folder, every artifact with a real manifest."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.artifacts: dict[str, Artifact] = {}
        self.trained: list[TrainedStage] = []

    def make(
        self,
        stage: str,
        stats: Mapping[str, Any],
        config: Mapping[str, Any],
        *inputs: str,
        how: Sequence[Any] = (),
        folders: Mapping[str, Path] | None = None,
    ) -> Path:
        draft = Draft(self.root, stage, config, {name: self.artifacts[name] for name in inputs}, folders or {})
        draft.open()
        self.artifacts[stage] = draft.commit(stats, how=how)
        return self.artifacts[stage].path

    def training(
        self,
        stage: str,
        objective: str,
        records: list[dict[str, Any]],
        start: str | None = None,
        bundle: Path | None = None,
        measured: Mapping[str, Any] | None = None,
        counted: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        schedule = {"kind": "wsd", "warmup_steps": 2, "decay_share": 0.5}
        optimizer = {"name": "adamw", "learning_rate": 0.001, "schedule": schedule}
        train: dict[str, Any] = {
            "steps": 20,
            "seq_len": 64,
            "global_batch_size": 4,
            "optimizer": optimizer,
            **settings,
        }
        mesh = {"replica": 1, "fsdp": 2, "tensor": 1}
        stats = {"steps": 20, "tokens": 20 * 4 * 64, "loss": 2.0, "tokens_per_s": 1000.0, "matmul_peak_flops": PEAK}
        stats["train_flops_per_token"] = 3 * forward_flops_per_token(MODEL, train["seq_len"])
        stats |= counted or {}
        inputs = [start] if start is not None else []
        config, folders = {"train": train, "model": MODEL.plain()}, {} if bundle is None else {"bundle": bundle}
        path = self.make(stage, stats, config, *inputs, how=[{"mesh": mesh, **(measured or {})}], folders=folders)
        (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        sheet = Timesheet(path / "times.jsonl", 1000.0, 0, {"start": 5.0})
        sheet.write(0, {"start": 5.0})
        sheet.write(20, {"start": 5.0, "steps": 15.0}, step_s=[1.0] * 20, process_bytes=10**9)
        sheet.close()
        self.trained.append(TrainedStage(stage, objective, self.artifacts[stage], start=start))

    def results(self, stage: str, results: list[EvalResult], stats: dict[str, Any], *inputs: str) -> None:
        write_results(results, self.make(stage, stats, {}, *inputs))

    def evaluation(self, stage: str, results: list[EvalResult]) -> None:
        self.results(f"evaluate-{stage}", results, {}, stage)
        self._change(stage, evaluation=self.artifacts[f"evaluate-{stage}"])

    def release(self, stage: str) -> None:
        """Exports and registers a stage's weights."""
        draft = Draft(self.root, "export", {"model": MODEL.plain()}, {stage: self.artifacts[stage]})
        folder, model = draft.open(), tiny_model()
        save_weights(MODEL, model.params, folder)
        TOKENIZER.save(folder)
        model.template.save(folder)
        self.artifacts["export"] = draft.commit({"parameters": num_params(MODEL)})
        registration = {"version": "v" * 64, "promoted": True, "gate": "passed\n  pass   text"}
        self.make("register", registration, {}, "export")
        self._change(stage, is_exported=True)

    def collect(self, samples: Sequence[Exchange] = (), name: str = "run") -> Numbers:
        price = PriceConfig(core_hour=3600)
        return collect(name, MODEL, self.trained, self.artifacts, samples, price, {"CPU": "a | b"})

    def _change(self, stage: str, **fields: Any) -> None:
        self.trained = [replace(t, **fields) if t.name == stage else t for t in self.trained]


STEPS = [{"step": s, "loss": 5 - s / 10, "tokens_per_s": 1000.0, "cpu_s": 1.5} for s in (10, 20)]
BITS = [{"step": s, "heldout_bits_per_byte": bits} for s, bits in ((0, 8.0), (20, 2.1))]
PAIRS = [
    {
        "step": s,
        "loss": 0.5,
        "rewards/accuracies": 0.7,
        "cpu_s": 0.5,
        "heldout_rewards/accuracies": 0.8,
        "heldout_rewards/margins": s / 10,
    }
    for s in (10, 20)
]


POLICY = [
    {
        "step": s, "loss": 0.1, "cpu_s": 0.5, "reward": 0.2 + s / 100, "reward_std": 0.3, "frac_reward_zero_std": 0.25,
        "completions/clipped_ratio": 0.5, "completions/mean_length": 20.0, "kl": s / 1000, "entropy": 1.5,
        "sampling/sampling_logp_difference/mean": 0.0, "sampling/sampling_logp_difference/max": 0.01,
        "reward_std_in_groups": 0.2, "completions/min_length": 2.0, "completions/max_length": 30.0,
        "completions/mean_terminated_length": 9.0, "completions/min_terminated_length": 2.0,
        "completions/max_terminated_length": 12.0, "clip_ratio/low_mean": 0.01, "clip_ratio/low_min": 0.0,
        "clip_ratio/high_mean": 0.02, "clip_ratio/high_max": 0.2, "clip_ratio/region_mean": 0.03, "num_tokens": 100 * s,
        "rewards/maths/mean": 0.2, "rewards/maths/std": 0.4, "step_time": 1.2, "generation_s": 1.0, "reward_s": 0.1,
        "heldout_reward": s / 40, "heldout_completions/mean_length": 15.0,
    }
    for s in (10, 20)
]  # fmt: skip


def rollouts() -> list[dict[str, Any]]:
    """Held-out answers at five steps, and what was sampled for two; one of them is hostile, one long."""
    said: dict[str, Any] = {"prompt": f"{NASTY} What is 1 + 1?", "reward": 0.5, "rewards": {"maths": 0.5, NASTY: None}}
    long = {"prompt": "Count.", "completion": "one two " * 400, "reward": None, "rewards": {}}
    heldout = [
        {"step": step, "split": "heldout", "completion": f"At {step} it was {NASTY}", **said}
        for step in range(0, 25, 5)
    ]
    sampled = [
        {"step": step, "split": "train", **one} for step in (10, 20) for one in ({"completion": "", **said}, long)
    ]
    return sorted(heldout + sampled, key=lambda sample: sample["step"])


def build_policy(root: Path) -> Run:
    """A published bundle that learns from rewards."""
    made = Run(root)
    made.make("tokenizer", {"kind": "bytes", "vocab_size": 261, "fingerprint": "f" * 64}, {})
    bundle = root.parent / "published"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    made.training("policy", "grpo", POLICY, bundle=bundle, beta=0.1)
    lines = "".join(json.dumps(sample) + "\n" for sample in rollouts())
    (made.artifacts["policy"].path / "rollouts.jsonl").write_text(lines)
    made.release("policy")
    return made


def funnel() -> list[dict[str, Any]]:
    first = {"step": "read", "files_in": 5, "bytes_in": 2000, "documents_out": 4, "bytes_out": 1500, "edits": {}}
    sample = {"source": "docs", "path": f"{NASTY}.txt", "reason": "empty", "detail": "0 bytes"}
    gone = {"source": "docs", "path": "a\udce9.txt", "reason": "too_few_words", "detail": NASTY, "text": NASTY}
    second = {"step": "quality", "documents_in": 4, "bytes_in": 1500, "documents_out": 3, "bytes_out": 1200}
    return [
        first | {"reasons": {"empty": 1}, "samples": [sample]},
        second | {"reasons": {"too_few_words": 1}, "edits": {"controls": 2}, "samples": [gone]},
    ]


def hits() -> list[dict[str, Any]]:
    """Two rows of a task in two documents and a held-out document in one."""
    found = [("choice", 3, "docs:a", "removed"), ("choice", 3, NASTY, "cut"), ("choice", 7, "docs:a", "removed")]
    return [
        {"task": task, "item": f"rows.jsonl:{line}", "ordinal": 0, "document": document, "share": line / 10,
         "excerpt": NASTY, "outcome": outcome}
        for task, line, document, outcome in [*found, (None, 8, "docs:a", "removed")]
    ]  # fmt: skip


def make_data(made: Run) -> None:
    """Documents, tokenizer, token shards and chat rows."""
    source = {"license": "MIT", "documents": 3, "bytes": 1200}
    found = {"rows": 4, "compared": 3, "found": 2, "left": 0, "documents": 5}
    data: dict[str, Any] = {"sources": {"docs": source}, "skipped": 1, "skipped_files": [f"docs:{NASTY}: empty"]}
    data["contamination"] = {"tasks": {"choice": found}, "heldout": dict.fromkeys(found, 0)}
    made.make("tagging", {}, {"sources": {"docs": {"files": 5, "bytes": 2000, "sha256": "ab" * 32}}})
    path = made.make("documents", data, {}, "tagging")
    (path / "funnel.json").write_text(json.dumps({"steps": funnel()}))
    pq.write_table(pa.Table.from_pylist(hits(), schema=HITS), path / CONTAMINATION)
    tokenizer: dict[str, Any] = {
        "kind": "bytes",
        "vocab_size": 261,
        "fingerprint": "f" * 64,
        "heldout_bytes_per_token": 1.0,
    }
    sizes = {"documents": 2, "bytes": 600, "tokens": 600, "bytes_per_token": 1.0}
    tokenizer["fertility"] = [
        {"of": "language", "name": "en", **sizes, "tokens_per_word": 5.25},
        {"of": "source", "name": NASTY, **sizes, "tokens_per_word": None},
    ]
    made.make("tokenizer", tokenizer, {}, "documents")
    split = {"documents": 3, "tokens": 10_240, "text_bytes": 1200, "unknown_tokens": 0}
    made.make("tokens", {"dtype": "uint16", "splits": {"train": split, "heldout": split}}, {}, "tokenizer")


def make_rows(made: Run) -> None:
    samples = {"chat-train": [{"messages": [{"role": "user", "content": NASTY}]}]}
    path = made.make("rows", {"rows": {"chat-train": 9}, "samples": samples}, {})
    write_questions(path / "chat-heldout.jsonl")


def make_baselines(made: Run, trained: str, tokens_seen: int = 5120) -> None:
    whole = [1.0, 1.1, 1.2, 1.3]
    seen = [2.2, 2.3, 2.25, 2.1] if tokens_seen < 10_240 else whole
    counts = {"seen": {"tokens": tokens_seen}, "whole": {"tokens": 10_240}}
    made.results("baseline", [text_result("trigram-seen", seen), text_result("trigram-whole", whole)], counts, trained)


def evaluate(made: Run, stage: str, better: float, right: int) -> None:
    scores = [score + better for score in (2.0, 2.15, 2.05, 2.0)]
    made.evaluation(stage, [text_result("text", scores), choice_result(right)])


def build_run(root: Path) -> Run:
    """Pre-training, fine-tuning, preference tuning; everything is measured."""
    made = Run(root)
    make_data(made)
    make_rows(made)
    made.training("pretrain", "next_token", [BITS[0], *STEPS, BITS[1]], measured={"eval_bytes": 1000})
    made.training("sft", "sft", STEPS, "pretrain", replay_share=0.25)
    made.training("prefer", "dpo", PAIRS, "sft", beta=0.1)
    make_baselines(made, "pretrain")
    for stage, better, right in (("pretrain", 0.0, 10), ("sft", -0.1, 25), ("prefer", 0.1, 25)):
        evaluate(made, stage, better, right)
    made.release("prefer")
    return made


def build_pretraining(root: Path) -> Run:
    """One stage on token shards; no rows and no evaluations."""
    made = Run(root)
    make_data(made)
    made.training("base", "next_token", [BITS[0], *STEPS, BITS[1]], measured={"eval_bytes": 1000}, mixture={})
    made.release("base")
    return made


def build_tuning(root: Path) -> Run:
    """A published bundle tuned on own rows in two stages: no documents, no token shards, no baselines."""
    made = Run(root)
    made.make("tokenizer", {"kind": "bytes", "vocab_size": 261, "fingerprint": "f" * 64}, {})
    make_rows(made)
    bundle = root.parent / "published"
    bundle.mkdir()
    (bundle / "config.json").write_text("{}")
    made.training("chat", "sft", STEPS, bundle=bundle)
    made.training("polish", "orpo", PAIRS, "chat", beta=0.2)
    for stage, right in (("chat", 12), ("polish", 20)):
        made.evaluation(stage, [choice_result(right)])
    made.release("polish")
    return made


def build_five_stages(root: Path) -> Run:
    """Two stages on tokens, then chat, then two ways on from it, of which the first is exported."""
    made = Run(root)
    make_data(made)
    make_rows(made)
    made.training("ground", "next_token", [*STEPS, *BITS], measured={"eval_bytes": 1000})
    made.training("anneal", "next_token", STEPS, "ground", measured={"eval_bytes": 1000})
    made.training("chat", "sft", STEPS, "anneal", replay_share=0.25)
    made.training("by_dpo", "dpo", PAIRS, "chat", beta=0.1)
    made.training("by_orpo", "orpo", PAIRS, "chat", beta=0.2)
    make_baselines(made, "ground", tokens_seen=10_240)
    for stage, better, right in (("ground", 0.0, 10), ("chat", -0.1, 25), ("by_dpo", 0.1, 25), ("by_orpo", 0.2, 30)):
        evaluate(made, stage, better, right)  # the annealed weights are not evaluated
    made.release("by_dpo")
    return made


def write_questions(path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"messages": [{"role": "user", "content": f"What is {i}?"}, {"role": "assistant", "content": f"It is {i}."}]}
        for i in range(8)
    ]
    rows += [{"prompt": "1 + 1 =", "completion": " 2"}, {"text": "no question"}, {"messages": [rows[0]["messages"][1]]}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def tiny_model() -> Model:
    return Model(MODEL, random_params(MODEL), TOKENIZER, ChatTemplate(TOKENIZER))
