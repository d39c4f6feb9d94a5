"""The families by name. A family is one file here; `docs/add-a-family.md` shows how to add one."""

from lifecycle.weights.families.deepseek_v3 import DEEPSEEK_V3
from lifecycle.weights.families.family import Family
from lifecycle.weights.families.gemma import GEMMA2, GEMMA3_TEXT
from lifecycle.weights.families.gpt_oss import GPT_OSS
from lifecycle.weights.families.llama import LLAMA
from lifecycle.weights.families.mistral import MISTRAL
from lifecycle.weights.families.mixtral import MIXTRAL
from lifecycle.weights.families.olmo2 import OLMO2
from lifecycle.weights.families.qwen import QWEN2, QWEN3, QWEN3_MOE
from lifecycle.weights.families.smollm3 import SMOLLM3

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        LLAMA, SMOLLM3, MISTRAL, QWEN2, QWEN3, QWEN3_MOE, GEMMA2, GEMMA3_TEXT, OLMO2, MIXTRAL, DEEPSEEK_V3, GPT_OSS,
    )
}  # fmt: skip
