"""Makes the preference objectives' golden values with TRL's own loss functions on the golden Llama 2.

Run after `make_family_golden.py`, in the same environment with `trl` beside (made with TRL 1.16.0):

    /tmp/parity/bin/pip install trl && /tmp/parity/bin/python tests/golden/make_preference_golden.py

Writes `preference.npz`: `tokens, learned [P, 2, T]` (chosen first; `learned` marks the answer's tokens, `lengths
[P, 2]` the whole row's), `ref_logprobs [P, 2]`, `beta`, and TRL's values: `dpo_loss` (mean over pairs) with
`dpo_rewards` (means of chosen and rejected) and `dpo_margin`; `orpo_logprobs [P, 2]` (means per token) and
`orpo_ratio_losses [P]` (`beta * log sigmoid(log odds ratio)`).
"""
# pyright: reportMissingImports=false

import tempfile
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from family_weights import write_model
from transformers import AutoModelForCausalLM
from trl import DPOTrainer
from trl.experimental.orpo import ORPOTrainer

HERE = Path(__file__).parent
NUM_PAIRS, LENGTH, BETA, VOCAB = 6, 20, 0.2, 64


def pairs() -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    arrays = {"tokens": np.zeros((NUM_PAIRS, 2, LENGTH), np.int64), "learned": np.zeros((NUM_PAIRS, 2, LENGTH), bool)}
    arrays["lengths"] = np.zeros((NUM_PAIRS, 2), np.int64)
    for pair in range(NUM_PAIRS):
        prompt = draw.integers(0, VOCAB, draw.integers(1, 6))
        for side in range(2):
            answer = draw.integers(0, VOCAB, draw.integers(1, 12))
            row = np.concatenate([prompt, answer])
            arrays["tokens"][pair, side, : len(row)] = row
            arrays["learned"][pair, side, len(prompt) : len(row)] = True
            arrays["lengths"][pair, side] = len(row)
    return arrays


def model_outputs(logits: torch.Tensor, labels: torch.Tensor) -> SimpleNamespace:
    """What TRL's fused head returns of each predicted token; zero where nothing is learned."""
    logprobs = logits[:, :-1].log_softmax(-1)
    found = logprobs.gather(-1, labels[:, 1:].clamp(min=0)[..., None])[..., 0] * (labels[:, 1:] != -100)
    zeros = torch.zeros_like(found)
    return SimpleNamespace(log_probs=found, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool())


def dpo(logits: torch.Tensor, labels: torch.Tensor, reference: torch.Tensor) -> dict[str, Any]:
    accelerator = SimpleNamespace(device="cpu", gather=lambda x: x, gather_for_metrics=lambda x: x)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=accelerator, aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", loss_types=["sigmoid"], loss_weights=[1.0],
        beta=BETA, use_weighting=False, _metrics={"eval": defaultdict(list)}, _total_train_tokens=0,
    )  # fmt: skip
    inputs = {
        "input_ids": labels, "completion_mask": (labels != -100).long(),
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, lambda **_: model_outputs(logits, labels), inputs, return_outputs=False)
    metrics = {name: values[0] for name, values in trainer._metrics["eval"].items() if isinstance(values[0], float)}
    rewards = [metrics["rewards/chosen"], metrics["rewards/rejected"]]
    return {"dpo_loss": loss.item(), "dpo_rewards": rewards, "dpo_margin": metrics["rewards/margins"]}


def main() -> None:
    arrays = pairs()
    # TRL's order: all chosen rows, then all rejected ones
    tokens, learned = (torch.from_numpy(arrays[name]).transpose(0, 1).flatten(0, 1) for name in ("tokens", "learned"))
    with tempfile.TemporaryDirectory() as folder:
        write_model(HERE / "families/llama2", Path(folder))
        model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
    with torch.no_grad():
        logits = model(tokens).logits  # causal: padding at the end changes nothing before it
    labels = tokens.masked_fill(~learned, -100)
    policy = ORPOTrainer.get_batch_logps(logits, labels).reshape(2, NUM_PAIRS).T
    noise = torch.from_numpy(np.random.default_rng(1).normal(size=policy.shape)).float()
    reference = policy + 3 * noise
    means = ORPOTrainer.get_batch_logps(logits, labels, average_log_prob=True).reshape(2, NUM_PAIRS).T
    trainer = SimpleNamespace(beta=BETA, accelerator=SimpleNamespace(device="cpu"))
    ratio_losses = ORPOTrainer.odds_ratio_loss(trainer, means[:, 0], means[:, 1])[0]
    found = dpo(logits, labels, reference)
    arrays |= {"ref_logprobs": reference.numpy(), "beta": np.float64(BETA), "orpo_logprobs": means.numpy()}
    arrays |= {"orpo_ratio_losses": ratio_losses.numpy()} | {name: np.array(value) for name, value in found.items()}
    np.savez_compressed(HERE / "preference.npz", allow_pickle=False, **arrays)


if __name__ == "__main__":
    main()
