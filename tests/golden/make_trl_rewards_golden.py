"""Makes the golden values of what lies between completions and the loss: TRL's own trainers' advantages and metrics.

In the environment of `make_trl_golden.py` (made with TRL 1.16.0, torch 2.15.0):

    /tmp/parity/bin/python tests/golden/make_trl_rewards_golden.py

Writes `trl_rewards.json`: completions of the golden Llama 2 as ids, with the number of their prompt's tokens; what two
reward functions say of them (`null`: nothing); log-probabilities of the completions' tokens by the policy and by the
initial model, whose weights differ; and by case TRL's settings, advantages and metrics.
"""
# pyrefly: ignore-errors[missing-import]

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from family_weights import write_model
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

HERE = Path(__file__).parent
PROMPTS, SAMPLES, VOCAB, END, PAD = 4, 3, 64, 63, 62
WEIGHTS = [1.0, 0.5]
CASES: dict[str, tuple[type, dict[str, Any]]] = {
    "grpo": (GRPOTrainer, {"scale_rewards": "group"}),
    "grpo_batch": (GRPOTrainer, {"scale_rewards": "batch"}),
    "dr_grpo": (GRPOTrainer, {"scale_rewards": "none"}),
    "rloo": (RLOOTrainer, {}),
    "rloo_kl": (RLOOTrainer, {"beta": 0.1}),
    "rloo_kl_truncated": (RLOOTrainer, {"beta": 0.1, "mask_truncated_completions": True}),
}


def main() -> None:
    draw = np.random.default_rng(5)
    prompts = [draw.integers(0, PAD, draw.integers(2, 6)).tolist() for _ in range(PROMPTS)]
    completions = [
        [*draw.integers(0, PAD, draw.integers(1, 9)).tolist(), *([END] if draw.random() < 0.7 else [])]
        for _ in range(PROMPTS * SAMPLES)
    ]
    said: list[list[float | None]] = [draw.normal(size=len(completions)).round(3).tolist() for _ in WEIGHTS]
    said[0][1] = said[1][1] = None  # nothing is said of one completion
    said[1][5] = None
    said[0][6:9], said[1][6:9] = [0.5] * 3, [-1.0] * 3  # a group without spread
    data: dict[str, Any] = {
        "completions": [
            {"ids": prompts[i // SAMPLES] + ids, "prompt": len(prompts[i // SAMPLES]), "is_cut": ids[-1] != END}
            for i, ids in enumerate(completions)
        ],
        "said": said, "weights": WEIGHTS, "samples": SAMPLES, "cases": {},
    }  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        write_model(HERE / "families" / "llama2", Path(folder))
        for name, (kind, settings) in CASES.items():
            found = run(kind, settings, Path(folder), prompts, completions, said)
            data["policy"], data["reference"] = found.pop("policy"), found.pop("reference")
            data["cases"][name] = {"settings": settings, **found}
            print(name, found)
    (HERE / "trl_rewards.json").write_text(json.dumps(data) + "\n")


def run(kind: type, settings: dict[str, Any], folder: Path, prompts: Any, completions: Any, said: Any) -> Any:
    """What the trainer makes of the completions: advantages, metrics and log-probabilities."""
    numbers = {f"t{i}": i for i in range(VOCAB)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(numbers, unk_token="t0")), eos_token=f"t{END}", pad_token=f"t{PAD}"
    )
    functions = [lambda values=values, **_: values for values in said]
    for number, function in enumerate(functions):
        function.__name__ = f"said{number}"
    with tempfile.TemporaryDirectory() as output:
        args = {GRPOTrainer: GRPOConfig, RLOOTrainer: RLOOConfig}[kind](
            output_dir=output, per_device_train_batch_size=len(completions), num_generations=SAMPLES, use_cpu=True,
            reward_weights=WEIGHTS, report_to=[], max_completion_length=16, bf16=False,
            **({"beta": 0.0} | settings),
        )  # fmt: skip
        trainer = kind(
            model=AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float(),
            reward_funcs=functions, args=args, processing_class=tokenizer,
            train_dataset=Dataset.from_list([{"prompt": "t1"}] * PROMPTS),
        )  # fmt: skip
        with torch.no_grad():  # the policy is not the initial model any more
            torch.manual_seed(1)
            for weights in trainer.model.parameters():
                weights += 0.02 * torch.randn_like(weights)
        repeated = [prompt for prompt in prompts for _ in range(SAMPLES)]
        drawn = completions if kind is RLOOTrainer else (completions, None)
        trainer._tokenize_prompts = lambda _: (repeated, None, {})
        trainer._generate_single_turn = lambda *_: drawn
        trainer.model.train()
        made = trainer._generate_and_score_completions([{"prompt": "t1"} for _ in completions])
        initial = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float()
        return {
            "advantages": made["advantages"].tolist(),
            "metrics": {name: float(values[-1]) for name, values in trainer._metrics["train"].items()},
            "policy": logprobs(trainer.model, repeated, completions),
            "reference": logprobs(initial, repeated, completions),
        }


@torch.no_grad()
def logprobs(model: Any, prompts: list[list[int]], completions: list[list[int]]) -> list[list[float]]:
    """Of each completion's tokens."""
    found = []
    for prompt, completion in zip(prompts, completions, strict=True):
        ids = torch.tensor([prompt + completion])
        of_next = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        found.append(of_next[len(prompt) - 1 :].tolist())
    return found


if __name__ == "__main__":
    main()
