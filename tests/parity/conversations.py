"""Conversations that chat templates are compared on; no imports, so that any Python can read them."""

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
AGAIN = {"role": "user", "content": "And <b>3 × 3</b>? 🎉"}
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


def call(name, arguments, number=1):
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


def parts(*texts, role="user"):
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}


# name: messages, tools, variables
CONVERSATIONS = {
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
