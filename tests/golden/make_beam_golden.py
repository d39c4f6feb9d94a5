"""Makes `beams.json`: transformers' beam search on a model that is a table. Run with torch and transformers:

python tests/golden/make_beam_golden.py
"""
# pyrefly: ignore-errors[missing-import]

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

VOCAB = 12


class Table(PreTrainedModel, GenerationMixin):
    """The next token's logits by the last two tokens."""

    config_class = PretrainedConfig
    main_input_name = "input_ids"

    def __init__(self, seed: int) -> None:
        super().__init__(PretrainedConfig(vocab_size=VOCAB, is_encoder_decoder=False, num_hidden_layers=1))
        values = np.random.default_rng(seed).normal(size=(VOCAB, VOCAB, VOCAB)) * 2
        self.table = torch.nn.Parameter(torch.tensor(values, dtype=torch.float64), requires_grad=False)

    def prepare_inputs_for_generation(self, input_ids: torch.Tensor, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": input_ids}

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutput:
        before = torch.cat([input_ids[:, :1], input_ids[:, :-1]], dim=1)
        return CausalLMOutput(logits=self.table[before, input_ids])


def example(seed: int, num_beams: int, penalty: float, early: bool | str, stop_ids: list[int]) -> dict[str, Any]:
    prompt, length = [3, 5], 9
    own = GenerationConfig(
        num_beams=num_beams, length_penalty=penalty, early_stopping=early, eos_token_id=stop_ids, pad_token_id=0,
        max_new_tokens=length, num_return_sequences=num_beams, do_sample=False, output_scores=True,
        return_dict_in_generate=True, use_cache=False,
    )  # fmt: skip
    found = Table(seed).generate(torch.tensor([prompt]), generation_config=own)
    outputs = []
    for row in found.sequences[:, len(prompt) :].tolist():
        end = next((place + 1 for place, token in enumerate(row) if token in stop_ids), len(row))
        outputs.append(row[:end])
    return {
        "seed": seed, "num_beams": num_beams, "length_penalty": penalty, "early_stopping": early, "prompt": prompt,
        "max_tokens": length, "stop_ids": stop_ids, "outputs": outputs, "scores": found.sequences_scores.tolist(),
    }  # fmt: skip


if __name__ == "__main__":
    cases = [
        (4, 1.0, False, [1]), (4, 1.0, True, [1]), (4, 0.0, "never", [1]), (5, 2.0, False, [1, 7]),
        (5, 2.0, "never", [1, 7]), (3, -1.0, False, [2]), (2, 0.6, True, [1, 2]), (8, 1.0, False, [4]),
    ]  # fmt: skip
    made = [example(seed, *case) for seed, case in enumerate(cases)]
    (Path(__file__).parent / "beams.json").write_text("[\n" + ",\n".join(map(json.dumps, made)) + "\n]\n")
