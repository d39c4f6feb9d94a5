"""Grammars of answers, in llguidance's variant of Lark: JSON of a schema, a regular expression, calls of tools, and
thoughts before any of these.

What must hold: an answer that is in the grammar is what the request asks for, and has no white space that says
nothing. Answers in JSON are as compact as can be; the arguments of calls are spaced as templates write them
(`json.dumps`), since that is what models have learned.
"""

import json
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from llguidance import LLMatcher, grammar_from

from lifecycle.inference.grammar import MAX_GRAMMAR
from lifecycle.serving.chat_schemas import RegexFormat, ResponseFormat, SchemaFormat, Tool
from lifecycle.serving.errors import RequestError
from lifecycle.serving.schemas import StructuredOutputs
from lifecycle.text.calls import CallForm
from lifecycle.text.harmony import CHANNEL, CONSTRAIN, ENDS, MESSAGE, START
from lifecycle.text.interface import Tokenizer
from lifecycle.text.thoughts import Marks

if TYPE_CHECKING:  # a type that is only in the library's stubs
    from llguidance._lib import JsonCompileOptions

OPTIONS = "x-guidance"  # llguidance's own key in a schema
COMPACT: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ",", "key_separator": ":"}
SPACED: "JsonCompileOptions" = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
TEXT = r"/(?s:.*)/"


def format_grammar(asked: ResponseFormat | None) -> str | None:
    """The grammar of a response format; None for text."""
    if isinstance(asked, SchemaFormat):
        return _json(asked.json_schema.schema_, "response_format")
    if isinstance(asked, RegexFormat):
        return LLMatcher.grammar_from_regex(asked.pattern)
    return None if asked is None or asked.type == "text" else _json({"type": "object"}, "response_format")


def structured_grammar(asked: StructuredOutputs) -> str:
    """The grammar of vLLM's `structured_outputs`. Raises `RequestError` for what is no JSON schema or no grammar."""
    if asked.regex is not None:
        return LLMatcher.grammar_from_regex(asked.regex)
    if asked.choice is not None:
        return grammar_from("choice", json.dumps(asked.choice))
    if asked.grammar is not None:
        return _lark(asked.grammar)
    schema = {"type": "object"} if asked.json_object else asked.json_
    if isinstance(schema, str):
        try:
            schema = json.loads(schema)
        except ValueError:
            schema = None
    if not isinstance(schema, dict):
        message = "structured_outputs.json: not a JSON schema: give an object"
        raise RequestError(400, message, "structured_outputs", "invalid_value")
    return _json(schema, "structured_outputs")


def _lark(rules: str) -> str:
    """Rules of Lark, or of llama.cpp's GBNF, as Lark."""
    if len(rules) > MAX_GRAMMAR:
        reason = f"structured_outputs.grammar: more than {MAX_GRAMMAR} characters"
        raise RequestError(400, reason, "structured_outputs", "invalid_value")
    try:
        return grammar_from("grammar", rules)
    except ValueError as error:
        message = f"structured_outputs.grammar: {error}"
        raise RequestError(400, message, "structured_outputs", "invalid_value") from None


def _json(schema: dict[str, Any], param: str) -> str:
    return LLMatcher.grammar_from_json_schema(_without_options(schema, param), overrides=COMPACT)


def _without_options(schema: dict[str, Any], param: str) -> dict[str, Any]:
    if OPTIONS in schema:
        raise RequestError(400, f"{param}: {OPTIONS} is not supported in a schema", param, "unsupported_parameter")
    return schema


def calls_grammar(
    form: CallForm, tools: Sequence[Tool], tokenizer: Tokenizer, is_required: bool, is_single: bool, other: str | None
) -> str:
    """Calls of these tools; unless they are required, or else an answer in the grammar `other`, or in text.

    Raises `RequestError` for parameters that are not an object's.
    """
    opening, closing = (_literal(text, tokenizer) for text in (form.opening, form.closing))
    one, more = _call_rules(form, opening, closing, is_single or form.is_single)
    rules = [
        f"start: {_answer_rule(form, opening, tokenizer, is_required, other)}",
        f"calls: {one} {more}",  # behind the opening of the first
        f"object: {_alternatives('object', len(tools))}",
        f"TEXT: {TEXT}",
        rf"before[lazy]: /(?s:.*){_pattern(form.opening)}/",
    ]
    for number, tool in enumerate(tools):
        rules.append(f"object_{number}: {_object_rule(form, tool, f'arguments_{number}', tokenizer)}")
        rules.append(f"arguments_{number}: %json {json.dumps(_arguments_schema(tool))}")
    return _joined(rules, {} if other is None else {"other": other})


def harmony_grammar(tools: Sequence[Tool], tokenizer: Tokenizer, is_required: bool, other: str | None) -> str:
    """Thoughts, then a call of these tools; unless it is required, or an answer in the grammar `other`, or in text.

    Raises `RequestError` for parameters that are not an object's.
    """
    start, channel, message, constrain = (_literal(t, tokenizer) for t in (START, CHANNEL, MESSAGE, CONSTRAIN))
    final = f'{channel} "final" {message} {"TEXT" if other is None else "@other"}'
    rules = [
        f"start: thoughts* ({' | '.join([*(['call'] if tools else []), *([] if is_required else ['final'])])})",
        f'thoughts: {channel} "analysis" {message} TEXT {_literal(ENDS[0], tokenizer)} {start} "assistant"',
        f"final: {final}",
        f"TEXT: {TEXT}",
    ]
    if tools:
        rules.append(f'call: {channel} "commentary to=functions." ({_alternatives("named", len(tools))})')
    for number, tool in enumerate(tools):
        rules.append(f'named_{number}: {_quoted(tool.function.name + " ")} {constrain} "json" {message} json_{number}')
        rules.append(f"json_{number}: %json {json.dumps(_arguments_schema(tool))}")
    return _joined(rules, {} if other is None else {"other": other})


def thinking_grammar(grammar: str, marks: Marks, is_open: bool, tokenizer: Tokenizer) -> str:
    """Thoughts, which the prompt may have opened, before what is in `grammar`; none of their own is needed."""
    opening, closing = (_literal(mark, tokenizer) for mark in marks)
    is_special = marks[1] in tokenizer.special_ids
    rules = [
        "start: rest @answer" if is_open else f"start: ({opening} rest)? @answer",
        f"rest: TEXT {closing} GAP" if is_special else "rest: thoughts GAP",
        rf"thoughts[lazy]: /(?s:.*){_pattern(marks[1])}/",
        f"TEXT: {TEXT}",
        r"GAP: /\n{0,2}/",
    ]
    return _joined(rules, {"answer": grammar})


def _answer_rule(form: CallForm, opening: str, tokenizer: Tokenizer, is_required: bool, other: str | None) -> str:
    calls = "calls" if form.is_bare else f"{opening} calls"
    if is_required or other is not None:
        return calls if is_required else f"{calls} | @other"
    if form.is_bare:  # a text does not begin as a call does
        return rf'{calls} | /[^{{](?s:.*)/ | ""'
    is_special = form.opening in tokenizer.special_ids  # then no text has it
    return f"TEXT ({calls})?" if is_special else "before calls | TEXT"


def _call_rules(form: CallForm, opening: str, closing: str, is_single: bool) -> tuple[str, str]:
    """A call behind its opening, or a list of calls; and further ones."""
    if form.is_list:
        return ("/ ?/" + (' "[" object "]"' if is_single else ' "[" object (", " object)* "]"'), "")
    if form.between or form.is_bare:
        one = "object"
        return one, "" if is_single else f"({opening} {one})*"
    one = rf'"\n" object "\n" {closing}'
    return one, "" if is_single else rf'("\n" {opening} {one})*'


def _object_rule(form: CallForm, tool: Tool, arguments: str, tokenizer: Tokenizer) -> str:
    name = tool.function.name
    if form.between:
        return f"{_quoted(name)} {_literal(form.between, tokenizer)} {arguments}"
    head = json.dumps({"name": name, form.arguments: {}}).removesuffix("{}}")
    return f'{_quoted(head)} {arguments} "}}"'


def _arguments_schema(tool: Tool) -> dict[str, Any]:
    name, parameters = tool.function.name, tool.function.parameters
    if parameters is None:
        parameters = {"type": "object", "properties": {}, "additionalProperties": False}
    parameters = {"type": "object"} | _without_options(parameters, "tools")
    if parameters["type"] != "object":
        message = f"tools: the parameters of {name} are of the type {parameters['type']}, not object"
        raise RequestError(400, message, "tools", "invalid_value")
    return parameters | {OPTIONS: SPACED}


def _joined(rules: Sequence[str], parts: Mapping[str, str]) -> str:
    """One grammar of Lark rules and the grammars that they name: `@name`."""
    grammars: list[dict[str, Any]] = [{"lark_grammar": "\n".join(rules)}]
    for name, grammar in parts.items():
        first, *rest = _listed(grammar)
        grammars += [first | {"name": name}, *rest]
    return json.dumps({"grammars": grammars})


def _listed(grammar: str) -> list[dict[str, Any]]:
    """llguidance's list of a grammar's parts; rules alone are one part."""
    return json.loads(grammar)["grammars"] if grammar.startswith("{") else [{"lark_grammar": grammar}]


def _alternatives(rule: str, count: int) -> str:
    return " | ".join(f"{rule}_{number}" for number in range(count))


def _literal(text: str, tokenizer: Tokenizer) -> str:
    """A text in a rule, with its special tokens as tokens."""
    parts = tokenizer.split_specials(text)
    return " ".join(_quoted(part) if special is None else f"<[{special}]>" for part, special in parts) or '""'


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def _pattern(text: str) -> str:
    return re.escape(text).replace("/", r"\/")
