"""Makes the golden ids and masks of rows with TRL's own trainers and a small tokenizer.

Run in an environment with torch, transformers and trl (made with TRL 1.16.0):

    /tmp/parity/bin/python tests/golden/make_rows_golden.py

Writes into `rows/` the tokenizer (a byte-level BPE without BOS, as GPT-2 and Qwen have it, with a ChatML template) and
`rows.json`: by kind, each row with the `ids` that TRL makes of it and from where on it learns (`learned`); of pairs one
for each answer.
"""
# pyrefly: ignore-errors[missing-import]

import json
import tempfile
from pathlib import Path
from typing import Any

from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer

OUT = Path(__file__).parent / "rows"
SPECIALS = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% if tools %}{{ '<|im_start|>system\\n' + (tools | tojson) + '<|im_end|>\\n' }}{% endif %}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
ASKED, SAID = "What is the sky?", " The sky is blue, and so is the sea."


def said(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATION = {
    "prompt": [said("system", "Be brief."), said("user", ASKED)],
    "completion": [said("assistant", "Blue.")],
}
RED = [said("assistant", "Red.")]
TOOL = [{"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}]
ROWS: dict[str, list[dict[str, Any]]] = {
    "chat": [
        {"text": "The sky is blue.\n"},
        {"text": "Ünï 天 🙂"},
        {"prompt": ASKED, "completion": SAID},
        {"prompt": f"{ASKED}\n", "completion": "Blue."},
        CONVERSATION,
        {**CONVERSATION, "tools": json.dumps(TOOL)},
    ],
    "pairs": [
        {"prompt": ASKED, "chosen": SAID, "rejected": " Green."},
        {"chosen": ASKED + SAID, "rejected": f"{ASKED} Green."},
        {"prompt": CONVERSATION["prompt"], "chosen": CONVERSATION["completion"], "rejected": RED},
    ],
    "labelled": [
        {"prompt": ASKED, "completion": SAID, "label": True},
        {**CONVERSATION, "label": False},
    ],
}  # fmt: skip


def tokenizer() -> PreTrainedTokenizerFast:
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    text = [ASKED, SAID, "user assistant system Be brief.", json.dumps(TOOL)] * 3
    raw.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=320, special_tokens=SPECIALS, initial_alphabet=alphabet)
    )
    OUT.mkdir(exist_ok=True)
    raw.save(str(OUT / "tokenizer.json"), pretty=False)
    config = {"eos_token": SPECIALS[0], "pad_token": SPECIALS[0], "additional_special_tokens": SPECIALS[1:]}
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")
    (OUT / "chat_template.jinja").write_text(TEMPLATE, encoding="utf-8")
    made = PreTrainedTokenizerFast(
        tokenizer_file=str(OUT / "tokenizer.json"), eos_token=SPECIALS[0], pad_token=SPECIALS[0]
    )
    made.add_special_tokens({"additional_special_tokens": SPECIALS[1:]})
    made.chat_template = TEMPLATE
    return made


def processed(kind: str, row: dict[str, Any], words: PreTrainedTokenizerFast, model: str) -> dict[str, Any]:
    """What the kind's trainer has made of a row before it collates it."""
    with tempfile.TemporaryDirectory() as folder:
        settings = {"output_dir": folder, "report_to": "none", "max_length": None, "use_cpu": True, "bf16": False}
        data, tools = Dataset.from_list([row, row]), {"processing_class": words}
        if kind == "chat":
            return SFTTrainer(model, SFTConfig(**settings), train_dataset=data, **tools).train_dataset[0]
        if kind == "pairs":
            return DPOTrainer(model, args=DPOConfig(**settings), train_dataset=data, **tools).train_dataset[0]
        settings |= {"per_device_train_batch_size": 2}
        return KTOTrainer(model, args=KTOConfig(**settings), train_dataset=data, **tools).train_dataset[0]


def halves(kind: str, made: dict[str, Any]) -> list[dict[str, Any]]:
    if kind == "chat":
        labels = made.get("labels", made["input_ids"])
        return [{"ids": made["input_ids"], "learned": next(i for i, label in enumerate(labels) if label != -100)}]
    names = ("chosen_ids", "rejected_ids") if kind == "pairs" else ("completion_ids",)
    return [{"ids": made["prompt_ids"] + made[name], "learned": len(made["prompt_ids"])} for name in names]


def main() -> None:
    words = tokenizer()
    size = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    with tempfile.TemporaryDirectory() as model:
        LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **size)).save_pretrained(model)
        golden = {
            kind: [{"row": row, "segments": halves(kind, processed(kind, row, words, model))} for row in rows]
            for kind, rows in ROWS.items()
        }
    (OUT / "rows.json").write_text(json.dumps(golden, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
