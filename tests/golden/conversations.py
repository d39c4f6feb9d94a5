"""Conversations that chat templates are compared on, and a tokenizer for them. Nothing of ours is imported, so that the
parity environment can read it."""

from typing import Any

Message = dict[str, Any]
Case = tuple[list[Message], list[dict[str, Any]] | None, dict[str, Any]]  # messages, tools, variables

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": 'The weather in a "city".\nIn degrees.',
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string", "description": "Name, é or <b>", "enum": ["Kiel", "Bonn"]},
                    "days": {"type": "array", "items": {"type": "integer"}, "default": [1]},
                    "where": {"type": "object", "properties": {"lat": {"type": "number"}}},
                },
                "required": ["city"],
            },
        },
    },
    {
        "type": "function",
        "function": {"name": "now", "description": "The time.", "parameters": {"type": "object", "properties": {}}},
    },
]
SYSTEM = {"role": "system", "content": "  Be brief.\nBe kind. "}
DEVELOPER = {"role": "developer", "content": "Answer in verse."}
QUESTION = {"role": "user", "content": " What is 2+2?\n\n"}
ANSWER = {"role": "assistant", "content": "It is 4. "}
AGAIN = {"role": "user", "content": "And <b>3 x 3</b>? 🎉"}
LAST = {"role": "assistant", "content": "\n9, naïvely\n"}
WEATHER = {"role": "user", "content": "How is Kiel?"}
THOUGHT = {"role": "assistant", "content": "9", "reasoning_content": "\nThree times\nthree.\n"}
INLINE = {"role": "assistant", "content": "<think>\nThree times three.\n</think>\n\n9"}
RESULT = {
    "role": "tool",
    "tool_call_id": "call00001",
    "name": "get_weather",
    "content": '{"degrees": 7, "sky": "<grey>"}',
}
SECOND = {"role": "tool", "tool_call_id": "call00002", "name": "now", "content": "12:00"}
REPORT = {"role": "assistant", "content": "7 degrees."}


def call(name: str, arguments: Any, number: int = 1) -> Message:
    return {"id": f"call0000{number}", "type": "function", "function": {"name": name, "arguments": arguments}}


CITY = {"city": "Kiel", "days": [1, 2], "where": {"lat": 54.3}, "now": True, "none": None}
CALL = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", CITY)]}
SAID_CALL = {"role": "assistant", "content": "Let me look.", "tool_calls": [call("get_weather", {"city": "Kiel"})]}
TWO_CALLS = {
    "role": "assistant",
    "content": "",
    "tool_calls": [call("get_weather", {"city": "Bonn"}), call("now", {}, 2)],
}
BARE_CALL = {"role": "assistant", "tool_calls": [call("get_weather", {"city": "Kiel"})]}
TEXT_CALL = {"role": "assistant", "content": "", "tool_calls": [call("get_weather", '{"city":"Kiel","days":[1]}')]}
THOUGHT_CALL = {
    "role": "assistant",
    "content": "",
    "reasoning_content": "I must look.",
    "tool_calls": [call("get_weather", {"city": "Kiel"})],
}


def parts(*texts: str, role: str = "user") -> Message:
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


CONVERSATIONS: dict[str, Case] = {
    "one": ([QUESTION, ANSWER], None, {}),
    "question": ([QUESTION], None, {}),
    "system": ([SYSTEM, QUESTION, ANSWER, AGAIN, LAST], None, {}),
    "several": ([QUESTION, ANSWER, AGAIN, LAST], None, {}),
    "open": ([SYSTEM, QUESTION, ANSWER, AGAIN], None, {}),
    "developer": ([DEVELOPER, QUESTION, ANSWER], None, {}),
    "thought": ([QUESTION, ANSWER, AGAIN, THOUGHT], None, {}),
    "early_thought": ([AGAIN, THOUGHT, QUESTION, ANSWER], None, {}),
    "inline_thought": ([QUESTION, ANSWER, AGAIN, INLINE], None, {}),
    "early_inline": ([AGAIN, INLINE, QUESTION, ANSWER], None, {}),
    "thinking_off": ([QUESTION], None, {"enable_thinking": False}),
    "thinking_on": ([QUESTION, ANSWER, AGAIN], None, {"enable_thinking": True}),
    "tools": ([SYSTEM, WEATHER], TOOLS, {}),
    "call": ([SYSTEM, WEATHER, CALL], TOOLS, {}),
    "result": ([WEATHER, CALL, RESULT], TOOLS, {}),
    "report": ([SYSTEM, WEATHER, CALL, RESULT, REPORT], TOOLS, {}),
    "said_call": ([WEATHER, SAID_CALL, RESULT, REPORT, QUESTION, ANSWER], TOOLS, {}),
    "two_calls": ([WEATHER, TWO_CALLS, RESULT, SECOND, REPORT], TOOLS, {}),
    "bare_call": ([WEATHER, BARE_CALL, RESULT, REPORT], TOOLS, {}),
    "text_call": ([WEATHER, TEXT_CALL, RESULT, REPORT], TOOLS, {}),
    "thought_call": ([WEATHER, THOUGHT_CALL, RESULT, REPORT], TOOLS, {}),
    "chained": ([WEATHER, CALL, RESULT, THOUGHT_CALL, RESULT, REPORT, QUESTION, ANSWER], TOOLS, {}),
    "untold_tools": ([WEATHER, CALL, RESULT, REPORT], None, {}),
    "parts": (
        [
            parts("Be ", "kind. ", role="system"),
            parts(" What is", " this? "),
            ANSWER,
            parts("Yes?"),
            parts(" So ", "it is.", role="assistant"),
        ],
        None,
        {},
    ),
    "empty_answer": ([QUESTION, {"role": "assistant", "content": ""}, AGAIN, LAST], None, {}),
}

SPECIALS = (
    "<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>",
    "<start_of_turn>", "<end_of_turn>", '<|"|>', "<tool_call>", "</tool_call>", "<|start|>", "<|channel|>",
    "<|message|>", "<|end|>", "<|call|>", "<|return|>", "<|User|>", "<|Assistant|>", "<|end_of_sentence|>",
    "<|tool_call_begin|>", "<|tool_call_end|>", "<|tool_sep|>", "<|tool_outputs_begin|>", "<|tool_outputs_end|>",
    "<|tool_output_begin|>", "<|tool_output_end|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>",
    "<|observation|>", "<end_of_utterance>", "[INST]", "[/INST]",
)  # fmt: skip
NAMES = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}


def tokenizer_json(specials: tuple[str, ...] = SPECIALS) -> dict[str, Any]:
    """A byte-level `tokenizer.json` without merges: a token per byte, and the special tokens."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    vocabulary = {chr(byte): byte for byte in printable} | {chr(0x100 + i): byte for i, byte in enumerate(others)}
    is_plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False, "special": True}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    return {
        "version": "1.0", "truncation": None, "padding": None, "normalizer": None, "post_processor": None,
        "added_tokens": [{"id": 256 + i, "content": name, **is_plain} for i, name in enumerate(specials)],
        "pre_tokenizer": byte_level, "decoder": byte_level, "model": {"type": "BPE", "vocab": vocabulary, "merges": []},
    }  # fmt: skip
