"""Makes the golden values of objectives with TRL's own trainers' losses on the golden Llama 2.

Run after `make_family_golden.py`, in the same environment with `trl` beside (made with TRL 1.16.0, torch 2.15.0):

    /tmp/parity/bin/pip install trl && /tmp/parity/bin/python tests/golden/make_trl_golden.py

Writes `trl.json`: the sequences (`pairs`: chosen then rejected; `answers`, with labels and the mismatched sequences
that KTO measures), each as ids and the number of its prompt's tokens; references; and by case TRL's settings, its loss,
its gradient's norm over all parameters, and its metrics. The teacher of `distillation` and `few_ids` is the golden
Gemma 2, whose logits are capped.
"""
# pyrefly: ignore-errors[missing-import]

import copy
import json
import tempfile
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from family_weights import write_model
from transformers import AutoModelForCausalLM, LlamaForTokenClassification
from trl import RewardTrainer
from trl.data_utils import pack_dataset
from trl.experimental.gkd import GKDTrainer
from trl.trainer.callbacks import SyncRefModelCallback
from trl.trainer.distillation_trainer import _chunked_divergence_loss
from trl_losses import LOSSES, Sequence, common, dpo, few_ids, metrics_of, padded, with_statistics

HERE = Path(__file__).parent
NUM_PAIRS, NUM_ANSWERS, LENGTH, VOCAB = 6, 8, 20, 64
RATE, STEPS = 0.01, 6  # of the steps with a reference that moves

type Case = tuple[str, dict[str, Any]]  # the trainer's kind, its settings


def sequences() -> dict[str, list[Any]]:
    draw = np.random.default_rng(0)

    def ids(low: int, high: int) -> list[int]:
        return draw.integers(0, VOCAB, draw.integers(low, high)).tolist()

    pairs = []
    for _ in range(NUM_PAIRS):
        prompt = ids(1, 6)
        pairs.append([{"ids": prompt + ids(1, 12), "prompt": len(prompt)} for _ in range(2)])
    prompts, answers = [ids(1, 6) for _ in range(NUM_ANSWERS)], [ids(1, 12) for _ in range(NUM_ANSWERS)]
    own = [{"ids": a + b, "prompt": len(a)} for a, b in zip(prompts, answers, strict=True)]
    others = [{"ids": a + b, "prompt": len(a)} for a, b in zip(prompts, answers[-1:] + answers[:-1], strict=True)]
    return {"pairs": pairs, "answers": own, "others": others, "labels": [1, 0, 1, 1, 0, 1, 0, 0]}


def cases() -> dict[str, Case]:
    plain = "sigmoid hinge ipo nca_pair bco_pair sppo_hard apo_zero apo_down aot aot_unpaired discopop sigmoid_norm"
    of_dpo: dict[str, dict[str, Any]] = {name: {"loss_types": [name]} for name in plain.split()}
    of_dpo |= {
        "robust": {"loss_types": ["robust"], "label_smoothing": 0.1},
        "exo_pair": {"loss_types": ["exo_pair"], "label_smoothing": 1e-3},
        "aot_smoothed": {"loss_types": ["aot"], "label_smoothing": 0.2},
        "beta": {"beta": 0.7},
        "mpo": {"loss_types": ["sigmoid", "bco_pair", "sft"], "loss_weights": [0.8, 0.2, 1.0]},
        "rpo": {"loss_types": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
        "forward_kl": {"f_divergence_type": "forward_kl"},
        "js_divergence": {"f_divergence_type": "js_divergence"},
        "alpha_divergence": {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.3},
        "ipo_js": {"loss_types": ["ipo"], "f_divergence_type": "js_divergence"},
        "wpo": {"use_weighting": True},
        "wpo_apo": {"use_weighting": True, "loss_types": ["apo_zero"]},
        "ld_dpo": {"ld_alpha": 0.4},
    }
    found: dict[str, Case] = {f"dpo_{name}": ("dpo", settings) for name, settings in of_dpo.items()}
    found |= {"orpo": ("orpo", {}), "orpo_beta": ("orpo", {"beta": 0.5})}
    of_cpo = {
        "sigmoid": {}, "hinge": {"loss_type": "hinge"}, "ipo": {"loss_type": "ipo", "cpo_alpha": 0.0},
        "simpo": {"loss_type": "simpo", "cpo_alpha": 0.0, "beta": 2.0, "simpo_gamma": 1.0},
        "cpo_simpo": {"loss_type": "simpo", "cpo_alpha": 0.7}, "smoothed": {"label_smoothing": 0.1},
        "alphapo": {"loss_type": "simpo", "cpo_alpha": 0.0, "alpha": 0.25},
    }  # fmt: skip
    found |= {f"cpo_{name}": ("cpo", settings) for name, settings in of_cpo.items()}
    found |= {
        "kto": ("kto", {}),
        "kto_weights": ("kto", {"desirable_weight": 1.5, "undesirable_weight": 0.6, "beta": 0.4}),
        "kto_apo": ("kto", {"loss_type": "apo_zero_unpaired"}),
        "sft": ("sft", {"loss_type": "nll"}),
        "sft_dft": ("sft", {"loss_type": "dft"}),
    }
    of_policy: dict[str, dict[str, Any]] = {
        name: {"loss_type": name} for name in ("grpo", "bnpo", "dapo", "dr_grpo", "sapo", "luspo")
    }
    of_policy |= {
        "cispo": {"loss_type": "cispo", "epsilon_high": 5.0},
        "gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-2},
        "two_sided": {"loss_type": "dapo", "delta": 1.5, "epsilon_high": 0.28},
        "kl": {"loss_type": "grpo", "beta": 0.3},
        "temperature": {"loss_type": "dapo", "temperature": 0.7},
        "vespo": {"loss_type": "vespo"},
        "off_policy": {"loss_type": "grpo", "off_policy_mask_threshold": 0.01},
        "off_policy_none": {"loss_type": "dapo", "off_policy_mask_threshold": -1.0},
        "top_entropy": {"loss_type": "dapo", "top_entropy_quantile": 0.3, "beta": 0.1},
        "top_entropy_grpo": {"loss_type": "grpo", "top_entropy_quantile": 0.77},
        "corrected_kl": {"loss_type": "grpo", "beta": 0.3, "use_bias_correction_kl": True},
        "corrected_kl_sequence": {
            "loss_type": "grpo",
            "importance_sampling_level": "sequence",
            "beta": 0.3,
            "use_bias_correction_kl": True,
        },
        "rloo": {"kind": "rloo"},
        "entropy": {"loss_type": "grpo", "entropy_coef": 0.2},
        "entropy_top": {"loss_type": "dapo", "entropy_coef": 0.1, "top_entropy_quantile": 0.3},
    }
    found |= {f"policy_{name}": ("policy", settings) for name, settings in of_policy.items()}
    return found


def references(run: Callable[..., Any], data: dict[str, Any]) -> dict[str, Any]:
    """Log-probabilities like a reference's: the model's with noise per token, of which each case takes its sums."""
    draw = torch.Generator().manual_seed(1)

    def per_token(rows: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor]:
        tokens, attention, completion = padded(rows)
        labels = tokens.masked_fill(completion == 0, -100)
        with torch.no_grad():
            found = run(input_ids=tokens, attention_mask=attention, labels=labels, fused_lm_head=True).log_probs
        return found + 1.5 * torch.randn(found.shape, generator=draw) * (found != 0), completion[:, 1:]

    pairs, mask = per_token([pair[side] for side in range(2) for pair in data["pairs"]])
    sums = pairs.sum(1).reshape(2, -1).T
    number, lengths = mask.cumsum(1), mask.sum(1).reshape(2, -1)
    shared = lengths.min(0).values.repeat(2)[:, None]
    weights = torch.where(number <= shared, 1.0, 0.4)
    beyond = (pairs * weights).sum(1).reshape(2, -1).T
    own, own_mask = per_token(data["answers"])
    answers, others = own.sum(1).tolist(), per_token(data["others"])[0].sum(1).tolist()
    noise = torch.randn(own.shape, generator=draw)
    ragged = lambda values: [row[keep > 0].tolist() for row, keep in zip(values, own_mask, strict=True)]  # noqa: E731
    return {
        "old": ragged(own + 0.2 * noise), "reference_tokens": ragged(own),
        "advantages": torch.randn(NUM_ANSWERS, generator=draw).tolist(),
        "reference_pairs": sums.tolist(), "reference_pairs_ld": {"0.4": beyond.tolist()},
        "reference_answers": answers, "reference_others": others,
    }  # fmt: skip


def reward_cases(model: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The reward trainer's loss with `data["score"]` as its head, and the norm of its gradient with the trunk's."""
    score = torch.tensor(data["score"], requires_grad=True)
    tokens, attention, _ = padded([pair[side] for side in range(2) for pair in data["pairs"]])

    def run(input_ids: torch.Tensor, attention_mask: torch.Tensor, use_cache: bool) -> Any:
        hidden = model.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        last = hidden[torch.arange(len(hidden)), attention_mask.sum(1) - 1]
        return SimpleNamespace(logits=(last @ score)[:, None])

    made = {}
    for name, settings in {"plain": {}, "margin": {"margin": True}, "centre": {"centre": 0.1}}.items():
        model.zero_grad()
        score.grad = None
        args = SimpleNamespace(center_rewards_coefficient=settings.get("centre"))
        trainer = common(args=args)
        inputs = {"input_ids": tokens, "attention_mask": attention}
        if "margin" in settings:
            inputs["margin"] = torch.tensor(data["margins"])
            inner = lambda margin, **rest: run(**rest)  # noqa: E731
        else:
            inner = run
        loss = RewardTrainer.compute_loss(trainer, inner, inputs)
        loss.backward()
        norm = torch.sqrt(sum((g.grad**2).sum() for g in (*model.model.parameters(), score) if g.grad is not None))
        found = {"loss": loss.item(), "grad_norm": norm.item(), "metrics": metrics_of(trainer)}
        made[name] = {"settings": settings, **found}
        print(name, loss.item(), norm.item())
    return made


def moving_references(model: Any, data: dict[str, Any]) -> list[dict[str, Any]]:
    """Steps of gradient descent on DPO's loss by TRL, with a reference that its callback moves."""
    made = []
    for settings in (
        {"ref_model_sync_steps": 2, "ref_model_mixup_alpha": 0.6},
        {"ref_model_sync_steps": 3, "ref_model_mixup_alpha": 1.0},
    ):
        policy, reference = copy.deepcopy(model), copy.deepcopy(model)
        optimizer = torch.optim.SGD(policy.parameters(), lr=RATE)
        losses, norms = [], []
        for step in range(1, STEPS + 1):
            tokens, attention, completion = padded([pair[side] for side in range(2) for pair in data["pairs"]])
            labels = tokens.masked_fill(completion == 0, -100)
            with torch.no_grad():
                found = with_statistics(reference)(
                    input_ids=tokens, attention_mask=attention, labels=labels, fused_lm_head=True
                )
            table = found.log_probs.sum(1).reshape(2, -1).T.tolist()
            loss, _ = dpo(with_statistics(policy), data | {"reference_pairs": table}, {})
            optimizer.zero_grad()
            loss.backward()
            norms.append(torch.sqrt(sum((p.grad**2).sum() for p in policy.parameters() if p.grad is not None)).item())
            losses.append(loss.item())
            optimizer.step()
            if step % settings["ref_model_sync_steps"] == 0:
                SyncRefModelCallback._sync_target_model(policy, reference, settings["ref_model_mixup_alpha"])
        made.append({"settings": settings, "learning_rate": RATE, "losses": losses, "grad_norms": norms})
        print(made[-1])
    return made


def process_rewards(model: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The loss of a token classifier with labels at the ends of steps, which is what TRL's PRMTrainer trained (TRL 1.16
    has none). Its head has the rows 0 and `data["score"]`; the norm is of the trunk's gradient and the second row's."""
    classifier = LlamaForTokenClassification(model.config).float().eval()
    classifier.config._attn_implementation = "eager"
    classifier.model.load_state_dict(model.model.state_dict())
    with torch.no_grad():
        classifier.score.bias.zero_()
        classifier.score.weight.copy_(torch.stack([torch.zeros(len(data["score"])), torch.tensor(data["score"])]))
    tokens, attention, _ = padded(data["answers"])
    draw = np.random.default_rng(3)
    labels = torch.full_like(tokens, -100)
    ends = []
    for row, answer in enumerate(data["answers"]):
        size = len(answer["ids"])
        places = sorted({size - 1, *draw.integers(answer["prompt"], size, 2).tolist()})
        ends.append([[place, int(draw.integers(2))] for place in places])
        for place, label in ends[-1]:
            labels[row, place] = label
    outputs = classifier(input_ids=tokens, attention_mask=attention, labels=labels)
    outputs.loss.backward()
    grads = [p.grad for p in classifier.model.parameters() if p.grad is not None]
    norm = torch.sqrt(sum((grad**2).sum() for grad in grads) + (classifier.score.weight.grad[1] ** 2).sum())
    is_labelled = labels != -100
    right = (outputs.logits.argmax(-1) == labels)[is_labelled].float().mean()
    found = {"ends": ends, "loss": outputs.loss.item(), "grad_norm": norm.item(), "accuracy": right.item()}
    print(found)
    return found


def wrapped(data: dict[str, Any]) -> dict[str, Any]:
    """Rows of 16 tokens that TRL packs from the answers, cutting what does not fit."""
    rows = [
        {"input_ids": row["ids"], "completion_mask": [int(i >= row["prompt"]) for i in range(len(row["ids"]))]}
        for row in data["answers"]
    ]
    packed = pack_dataset(Dataset.from_list(rows), seq_length=16, strategy="wrapped")
    return {name: packed[name][:] for name in ("input_ids", "completion_mask")}


def distillation_cases(model: Any, teacher: Any, data: dict[str, Any]) -> dict[str, Any]:
    """GKD's loss of the answers, and the student's entropy as the distillation trainer logs it; both trainers' losses
    are the same."""
    tokens, attention, completion = padded(data["answers"])
    labels = tokens.masked_fill(completion == 0, -100)[:, 1:]
    inputs = {"input_ids": tokens, "attention_mask": attention}
    made = {}
    for beta in (0.0, 0.1, 0.5, 0.9, 1.0):
        for temperature in (0.7, 1.0, 2.0):
            model.zero_grad()
            of = {"beta": beta, "temperature": temperature}
            with torch.no_grad():
                theirs = teacher(**inputs).logits[:, :-1]
            loss = GKDTrainer.generalized_jsd_loss(model(**inputs).logits[:, :-1], theirs, labels, **of)
            loss.backward()
            norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
            with torch.no_grad():
                hidden = [side.model(**inputs).last_hidden_state[:, :-1] for side in (model, teacher)]
                heads = model.lm_head.weight, teacher.lm_head.weight
                caps = {"teacher_final_logit_softcapping": teacher.config.final_logit_softcapping}
                other, entropy, num = _chunked_divergence_loss(*hidden, *heads, completion[:, 1:], **of, **caps)
            assert abs(float(other) / float(loss) - 1) < 1e-5
            metrics = {"entropy": float(entropy / num)}
            made[f"{beta}_{temperature}"] = {
                "settings": of, "loss": loss.item(), "grad_norm": norm.item(), "metrics": metrics
            }  # fmt: skip
            print("distillation", of, loss.item(), norm.item())
    return made


def few_ids_cases(model: Any, teacher: Any, data: dict[str, Any]) -> dict[str, Any]:
    """The same by the teacher's likeliest ids."""
    tokens, attention, completion = padded(data["answers"])
    labels = tokens.masked_fill(completion == 0, -100)[:, 1:]
    inputs = {"input_ids": tokens, "attention_mask": attention}
    with torch.no_grad():
        theirs = teacher(**inputs).logits[:, :-1]
    made = {}
    for beta, temperature, top_k, add_tail in product((0.0, 0.3, 1.0), (1.0, 2.0), (1, 5), (True, False)):
        if top_k == 1 and not add_tail:
            continue  # one id, normalised: nothing to learn
        of = {"beta": beta, "temperature": temperature, "loss_top_k": top_k, "loss_add_tail": add_tail}
        model.zero_grad()
        loss = few_ids(model(**inputs).logits[:, :-1], theirs, labels, of)
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
        made["_".join(map(str, of.values()))] = {"settings": of, "loss": loss.item(), "grad_norm": norm.item()}
        print("few ids", of, loss.item(), norm.item())
    return made


def golden_model(name: str) -> Any:
    with tempfile.TemporaryDirectory() as folder:
        write_model(HERE / "families" / name, Path(folder))
        return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").float().eval()


def main() -> None:
    model = golden_model("llama2")
    run = with_statistics(model)
    data: dict[str, Any] = sequences()
    data |= references(run, data)
    draw = np.random.default_rng(2)
    data["score"] = draw.normal(size=model.config.hidden_size).astype(np.float32).tolist()
    data["margins"] = draw.random(NUM_PAIRS).astype(np.float32).tolist()
    data["rewards"] = reward_cases(model, data)
    data["distillation"] = distillation_cases(model, teacher := golden_model("gemma2"), data)
    data["few_ids"] = few_ids_cases(model, teacher, data)
    data["moving_references"] = moving_references(model, data)
    data["process_rewards"] = process_rewards(model, data)
    data["wrapped"] = wrapped(data)
    made = {}
    for name, (kind, settings) in cases().items():
        model.zero_grad()
        loss, metrics = LOSSES[kind](run, data, settings)
        loss.backward()
        norm = torch.sqrt(sum((p.grad**2).sum() for p in model.parameters() if p.grad is not None))
        made[name] = {
            "kind": kind, "settings": settings, "loss": loss.item(), "grad_norm": norm.item(), "metrics": metrics
        }  # fmt: skip
        print(name, loss.item(), norm.item())
    (HERE / "trl.json").write_text(json.dumps(data | {"cases": made}) + "\n")


if __name__ == "__main__":
    main()
