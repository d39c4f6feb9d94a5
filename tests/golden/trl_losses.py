"""Losses of TRL's own trainers on given sequences: a function per kind of trainer, from a model, the data of
`make_trl_golden.py` and TRL's settings to a loss with a gradient, and the metrics."""
# pyrefly: ignore-errors[missing-import]

from collections import defaultdict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from trl import DPOTrainer, GRPOTrainer, KTOTrainer, RLOOTrainer, SFTTrainer
from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer
from trl.experimental.server_distillation import server_distillation_trainer as from_server

type Sequence = dict[str, Any]  # ids, and `prompt`: how many of them are its
type Found = tuple[torch.Tensor, dict[str, float]]  # the loss and the metrics


def padded(rows: list[Sequence]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, attention mask, completion mask), padded on the right."""
    longest = max(len(row["ids"]) for row in rows)
    tokens, attention, completion = (torch.zeros(len(rows), longest, dtype=torch.long) for _ in range(3))
    for i, row in enumerate(rows):
        tokens[i, : len(row["ids"])] = torch.tensor(row["ids"])
        attention[i, : len(row["ids"])] = 1
        completion[i, row["prompt"] : len(row["ids"])] = 1
    return tokens, attention, completion


def few_ids(
    logits: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, settings: dict[str, Any]
) -> torch.Tensor:
    """The loss of a teacher behind a server, of which the likeliest ids are known: forward KL by the trainer's own
    function. With beta above 0 that takes one id; its parts take any number."""
    beta, top_k, add_tail = settings["beta"], settings["loss_top_k"], settings["loss_add_tail"]
    own = (logits / settings["temperature"]).log_softmax(-1)
    theirs, ids = (teacher / settings["temperature"]).log_softmax(-1).topk(top_k)
    trainer = from_server.ServerDistillationTrainer
    if beta == 0:
        told = {"topk_logprobs": theirs, "topk_token_ids": ids}
        known = SimpleNamespace(loss_add_tail=add_tail, _reduce_divergence_loss=trainer._reduce_divergence_loss)
        return trainer._compute_server_forward_kl_loss(known, told, own, labels)
    sides, known = [own.gather(-1, ids), theirs], torch.ones_like(ids, dtype=torch.bool)
    if add_tail:
        (sides, (known, _)) = zip(*(from_server._add_tail_bucket(side, known) for side in sides), strict=True)
    else:
        sides = [side - side.logsumexp(-1, keepdim=True) for side in sides]
    values = from_server._jsd_divergence(*sides, beta, known)
    return trainer._reduce_divergence_loss(values, completion_mask=labels != -100)


def with_statistics(model: Any) -> Callable[..., Any]:
    """The model with what TRL's fused head returns beside logits; zero where nothing is learned."""

    def run(*ids: Any, labels: torch.Tensor | None = None, fused_lm_head: bool = False, **inputs: Any) -> Any:
        outputs = model(*ids, **inputs)
        if not fused_lm_head:
            return outputs
        assert labels is not None
        logprobs = outputs.logits[:, :-1].log_softmax(-1)
        shifted = labels[:, 1:]
        mask = shifted != -100
        found = logprobs.gather(-1, shifted.clamp(min=0)[..., None])[..., 0] * mask
        entropy = -(logprobs.exp() * logprobs).sum(-1) * mask
        top1 = (outputs.logits[:, :-1].argmax(-1) == shifted) & mask
        return SimpleNamespace(
            log_probs=found, entropy=entropy, mean_logits=outputs.logits[:, :-1].mean(-1) * mask, is_top1=top1,
            log_sum_sq_probs=(2 * logprobs).logsumexp(-1), label_mask=mask, aux_loss=None,
        )  # fmt: skip

    return run


def accelerator() -> SimpleNamespace:
    same = lambda x: x  # noqa: E731
    return SimpleNamespace(device="cpu", gather=same, gather_for_metrics=same, num_processes=1)


def common(**own: Any) -> SimpleNamespace:
    return SimpleNamespace(
        model=SimpleNamespace(training=False), accelerator=accelerator(), aux_loss_enabled=False,
        precompute_ref_logps=True, _metrics={"eval": defaultdict(list)}, _total_train_tokens=0, _tp_size=1, **own,
    )  # fmt: skip


def metrics_of(trainer: SimpleNamespace) -> dict[str, float]:
    return {name: float(values[0]) for name, values in trainer._metrics["eval"].items() if name != "num_tokens"}


def dpo(run: Callable[..., Any], data: dict[str, Any], settings: dict[str, Any]) -> Found:
    defaults: dict[str, Any] = {
        "beta": 0.1, "ld_alpha": None, "f_divergence_type": "reverse_kl", "f_alpha_divergence_coef": 0.5,
        "loss_types": ["sigmoid"], "loss_weights": None, "label_smoothing": 0.0, "use_weighting": False,
    }  # fmt: skip
    given = defaults | settings
    given["loss_weights"] = given["loss_weights"] or [1.0] * len(given["loss_types"])
    trainer = common(**given, args=SimpleNamespace(discopop_tau=0.05))
    rows = [pair[side] for side in range(2) for pair in data["pairs"]]
    tokens, attention, completion = padded(rows)
    reference = torch.tensor(data["reference_pairs"])
    if given["ld_alpha"] is not None:  # TRL would weigh a reference's tokens too
        reference = torch.tensor(data["reference_pairs_ld"][str(given["ld_alpha"])])
    inputs = {
        "input_ids": tokens, "attention_mask": attention, "completion_mask": completion,
        "ref_chosen_logps": reference[:, 0], "ref_rejected_logps": reference[:, 1],
    }  # fmt: skip
    loss = DPOTrainer._compute_loss(trainer, run, inputs, return_outputs=False)
    return loss, metrics_of(trainer)


def kto(run: Callable[..., Any], data: dict[str, Any], settings: dict[str, Any]) -> Found:
    defaults = {"beta": 0.1, "loss_type": "kto", "desirable_weight": 1.0, "undesirable_weight": 1.0}
    given = defaults | settings
    trainer = common(**given, calculate_KL=given["loss_type"] == "kto")
    trainer._compute_kl_logps = lambda model, batch: KTOTrainer._compute_kl_logps(trainer, model, batch)
    tokens, attention, completion = padded(data["answers"])
    others, other_attention, other_completion = padded(data["others"])
    inputs = {
        "input_ids": tokens, "attention_mask": attention, "completion_mask": completion,
        "KL_input_ids": others, "KL_attention_mask": other_attention, "KL_completion_mask": other_completion,
        "label": torch.tensor(data["labels"], dtype=torch.bool),
        "ref_logps": torch.tensor(data["reference_answers"]), "ref_KL_logps": torch.tensor(data["reference_others"]),
    }  # fmt: skip
    loss = KTOTrainer._compute_loss(trainer, run, inputs, return_outputs=False)
    return loss, metrics_of(trainer)


def without_reference(kind: Any, run: Callable[..., Any], data: dict[str, Any], settings: dict[str, Any]) -> Found:
    """ORPO and CPO, whose trainers make the batch themselves."""
    rows = {side: padded([pair[i] for pair in data["pairs"]]) for i, side in enumerate(("chosen", "rejected"))}
    batch = {}
    for side, (tokens, attention, completion) in rows.items():
        batch |= {f"{side}_input_ids": tokens, f"{side}_attention_mask": attention}
        batch[f"{side}_labels"] = tokens.masked_fill(completion == 0, -100)
    defaults = {
        "beta": 0.1, "cpo_alpha": 1.0, "loss_type": "sigmoid", "label_smoothing": 0.0, "simpo_gamma": 0.5, "alpha": 0.0
    }  # fmt: skip
    trainer = common(
        **defaults | settings, is_encoder_decoder=False, label_pad_token_id=-100, padding_value=0, pad_token_id=0
    )
    for name in ("concatenated_inputs", "get_batch_logps"):
        setattr(trainer, name, getattr(kind, name))
    for name in ("concatenated_forward", "odds_ratio_loss", "cpo_loss"):
        if hasattr(kind, name):
            setattr(trainer, name, getattr(kind, name).__get__(trainer))
    loss, metrics = kind.get_batch_loss_metrics(trainer, run, batch, "train")
    return loss, {name: float(value) for name, value in metrics.items() if not name.startswith("logits/")}


def sft(run: Callable[..., Any], data: dict[str, Any], settings: dict[str, Any]) -> Found:
    args = SimpleNamespace(loss_type=settings["loss_type"], average_tokens_across_devices=False, max_length=None)
    given = accelerator()
    given.parallelism_config = None
    trainer = common(
        args=args, compute_loss_func=None, label_smoother=None, maybe_activation_offload_context=None,
        get_tp_size=lambda: 1, current_gradient_accumulation_steps=1,
    )  # fmt: skip
    trainer.accelerator = given
    tokens, attention, completion = padded(data["answers"])
    inputs = {
        "input_ids": tokens, "attention_mask": attention, "labels": tokens.masked_fill(completion == 0, -100)
    }  # fmt: skip
    loss = SFTTrainer.compute_loss(trainer, run, inputs)
    return loss, metrics_of(trainer)


def policy(run: Callable[..., Any], data: dict[str, Any], settings: dict[str, Any]) -> Found:
    """GRPO's loss, or with `kind: rloo` RLOO's, of completions with advantages and older log-probabilities."""
    defaults: dict[str, Any] = {
        "loss_type": "dapo", "importance_sampling_level": "token", "epsilon_low": 0.2, "epsilon_high": 0.2, "beta": 0.0,
        "delta": None, "temperature": 1.0, "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None,
        "use_bias_correction_kl": False, "entropy_coef": 0.0,
    }  # fmt: skip
    given = defaults | settings
    args = SimpleNamespace(
        delta=given["delta"], use_bias_correction_kl=given["use_bias_correction_kl"], sapo_temperature_pos=1.0,
        sapo_temperature_neg=1.05, vespo_k_pos=2.0, vespo_lambda_pos=3.0, vespo_k_neg=3.0, vespo_lambda_neg=2.0,
    )  # fmt: skip
    trainer = common(
        **given, args=args, use_vllm=False, use_adaptive_entropy=False,
        _entropy_bonus_enabled=given["entropy_coef"] > 0, max_completion_length=16,
        current_gradient_accumulation_steps=1,
        _step=0, num_generations=2,
    )  # fmt: skip
    trainer.accelerator.reduce = lambda x, reduction: x
    trainer.accelerator.pad_across_processes = lambda x, dim, pad_index: x
    for name in ("get_off_policy_mask", "get_gamma_weights"):
        setattr(trainer, name, getattr(GRPOTrainer, name))
    trainer.get_high_entropy_mask = GRPOTrainer.get_high_entropy_mask.__get__(trainer)
    longest = max(row["prompt"] for row in data["answers"])  # prompts are padded on the left, as TRL does
    size = max(len(row["ids"]) - row["prompt"] for row in data["answers"])
    rows = len(data["answers"])
    prompts, prompt_mask = (torch.zeros(rows, longest, dtype=torch.long) for _ in range(2))
    completions, mask = (torch.zeros(rows, size, dtype=torch.long) for _ in range(2))
    old, reference = torch.zeros(rows, size), torch.zeros(rows, size)
    for i, row in enumerate(data["answers"]):
        start, ids = row["prompt"], row["ids"]
        prompts[i, longest - start :], prompt_mask[i, longest - start :] = torch.tensor(ids[:start]), 1
        completions[i, : len(ids) - start], mask[i, : len(ids) - start] = torch.tensor(ids[start:]), 1
        old[i, : len(ids) - start] = torch.tensor(data["old"][i])
        reference[i, : len(ids) - start] = torch.tensor(data["reference_tokens"][i])

    def statistics(model: Any, ids: torch.Tensor, attention: torch.Tensor, keep: int, **_: Any) -> Any:
        positions = (attention.cumsum(1) - 1).clamp(min=0)
        logits = run(input_ids=ids, attention_mask=attention, position_ids=positions).logits[:, -keep - 1 : -1]
        logprobs = (logits / given["temperature"]).log_softmax(-1)
        found = logprobs.gather(-1, ids[:, -keep:, None])[..., 0]
        return found, -(logprobs.exp() * logprobs).sum(-1), None

    trainer._get_per_token_logps_and_entropies = statistics
    inputs = {
        "prompt_ids": prompts, "prompt_mask": prompt_mask, "completion_ids": completions, "completion_mask": mask,
        "advantages": torch.tensor(data["advantages"]), "old_per_token_logps": old, "ref_per_token_logps": reference,
        "num_items_in_batch": mask.sum(), "old_logps": (old * mask).sum(1),
    }  # fmt: skip
    kind = RLOOTrainer if given.get("kind") == "rloo" else GRPOTrainer
    trainer.steps_per_generation = 1
    return kind._compute_loss(trainer, run, inputs), metrics_of(trainer)


LOSSES: dict[str, Callable[..., Found]] = {
    "dpo": dpo,
    "kto": kto,
    "sft": sft,
    "policy": policy,
    "orpo": lambda *given: without_reference(ORPOTrainer, *given),
    "cpo": lambda *given: without_reference(CPOTrainer, *given),
}
