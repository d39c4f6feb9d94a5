"""How a chat is asked of its model: its prompt, the grammar of the answer, and how the answer is taken apart.

What a model can do is read from its chat template: whether it has tools, in which form it calls them, and how it marks
its thoughts. What must hold: what the template cannot do is refused by name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from lifecycle.inference.engine import Engine
from lifecycle.inference.grammar import GrammarError
from lifecycle.inference.model import Model
from lifecycle.serving.chat_schemas import ChatRequest, NamedTool, TokenizeRequest, Tool, plain_messages
from lifecycle.serving.errors import RequestError
from lifecycle.serving.grammars import (
    calls_grammar,
    format_grammar,
    harmony_grammar,
    structured_grammar,
    thinking_grammar,
)
from lifecycle.serving.prompts import chat_prompt, text_ids
from lifecycle.serving.schemas import StructuredOutputs
from lifecycle.text.abilities import Abilities
from lifecycle.text.answer import AnswerParser
from lifecycle.text.harmony import HarmonyParser

SWITCH = "enable_thinking"  # what templates of models that may think or not call their switch


@dataclass(frozen=True)
class Chat:
    """A chat that is ready to be submitted."""

    messages: list[dict[str, Any]]
    prompt: list[int]
    abilities: Abilities
    tools: list[Tool]  # that the model may call
    is_thinking: bool  # the prompt has opened the answer's thoughts
    changes: dict[str, Any]  # of the sampling settings
    prediction: list[int]  # tokens that the answer may have

    def parser(self) -> AnswerParser | HarmonyParser:
        """A machine that takes one answer apart."""
        return self.abilities.parser([tool.function.name for tool in self.tools], self.is_thinking)


def prepare_chat(ask: ChatRequest, engine: Engine) -> Chat:
    """Renders the prompt and compiles the grammar, which may take a while. Raises `RequestError`."""
    model = engine.model
    abilities, tools, messages = Abilities.of(model.template.source), _callable(ask), plain_messages(ask.messages)
    _require_form(abilities, tools, model)
    variables = _variables(ask.chat_template_kwargs, model) | _effort(ask.reasoning_effort, abilities, model)
    given, prediction = [tool.plain for tool in tools], _prediction(ask, engine)
    prompt = chat_prompt(messages, model, engine.max_seq_len, tools=given, variables=variables)
    is_thinking = abilities.opens_thoughts(prompt, model.tokenizer)
    grammar = _grammar(ask, abilities, tools, is_thinking, model)
    _compile(engine, grammar, "tools" if tools else "response_format")
    changes = {"grammar": grammar, "shown_ids": abilities.shown_ids(model.tokenizer)}
    return Chat(messages, prompt, abilities, tools, is_thinking, changes, prediction)


def _prediction(ask: ChatRequest, engine: Engine) -> list[int]:
    """The tokens that a request predicts. Raises `RequestError` if the engine takes no predictions."""
    if ask.prediction is None:
        return []
    if not engine.takes_predictions:
        reason = "prediction: this server takes no drafts from texts; start it with serve.speculation.method=ngram"
        raise RequestError(400, reason, "prediction", "unsupported_parameter")
    return text_ids(ask.prediction.text, engine.model, engine.max_seq_len, begins=False, param="prediction")


def token_ids(ask: TokenizeRequest, engine: Engine) -> list[int]:
    """The ids that a completion of the text, or a chat's answer, would continue."""
    model, most = engine.model, engine.max_seq_len
    if ask.messages is None:
        return text_ids(ask.prompt or "", model, most, ask.add_special_tokens)
    messages, tools = plain_messages(ask.messages), ask.tools or []
    _require_form(Abilities.of(model.template.source), tools, model)
    variables = _variables(ask.chat_template_kwargs, model)
    return chat_prompt(messages, model, most, ask.add_generation_prompt, [tool.plain for tool in tools], variables)


def structured_changes(asked: StructuredOutputs | None, engine: Engine) -> dict[str, Any]:
    """Of a text completion's sampling settings; compiles the grammar. Raises `RequestError`."""
    grammar = None if asked is None else structured_grammar(asked)
    _compile(engine, grammar, "structured_outputs")
    return {"grammar": grammar}


def _compile(engine: Engine, grammar: str | None, param: str) -> None:
    """Raises `RequestError` with llguidance's words for a grammar that is refused."""
    try:
        if grammar is not None:
            engine.compile(grammar)
    except GrammarError as error:
        raise RequestError(400, f"{param}: {error}", param, "invalid_value") from None


def _callable(ask: ChatRequest) -> list[Tool]:
    """The tools that the model is told of: with the choice `none`, none."""
    if ask.tools is None or ask.tool_choice == "none":
        return []
    if isinstance(ask.tool_choice, NamedTool):
        return [tool for tool in ask.tools if tool.function.name == ask.tool_choice.function.name]
    return ask.tools


def _require_form(abilities: Abilities, tools: list[Tool], model: Model) -> None:
    """Raises `RequestError` for tools that the model has no place for, or would call in an unknown way."""
    if tools and not abilities.calls_tools:
        is_known = "tools" in model.template.variables
        reason = "has calls in none of the known forms" if is_known else "has no place for tools"
        raise RequestError(400, f"tools: this model's chat template {reason}", "tools", "unsupported_parameter")


def _variables(given: Mapping[str, Any] | None, model: Model) -> dict[str, Any]:
    """The variables that a request gives the chat template. Raises `RequestError` for one that it does not read."""
    own = {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token", "pad_token"}
    if wrong := [name for name in given or () if name in own or name not in model.template.variables]:
        reason = f"chat_template_kwargs: this model's chat template takes no {wrong[0]} from a request"
        raise RequestError(400, reason, "chat_template_kwargs", "unsupported_parameter")
    return dict(given or {})


def _effort(effort: str | None, abilities: Abilities, model: Model) -> dict[str, Any]:
    """OpenAI's `reasoning_effort` as the template has it: a variable of this name, or a switch for `none`."""
    if effort is None or "reasoning_effort" in model.template.variables:
        return {} if effort is None else {"reasoning_effort": effort}
    if effort == "none" and SWITCH in model.template.variables:
        return {SWITCH: False}
    if effort == "none" and abilities.marks is None and not abilities.is_harmony:
        return {}
    reason = f"reasoning_effort={effort} is not supported by this model's chat template"
    raise RequestError(400, reason, "reasoning_effort", "unsupported_parameter")


def _grammar(ask: ChatRequest, abilities: Abilities, tools: list[Tool], is_thinking: bool, model: Model) -> str | None:
    """The grammar of the whole answer; None: whatever the model says."""
    grammar = format_grammar(ask.response_format)
    if ask.structured_outputs is not None:
        grammar = structured_grammar(ask.structured_outputs)
    is_required = isinstance(ask.tool_choice, NamedTool) or ask.tool_choice == "required"
    is_single = ask.parallel_tool_calls is False or isinstance(ask.tool_choice, NamedTool)
    is_strict = is_required or is_single or any(tool.function.strict for tool in tools) or grammar is not None
    if abilities.is_harmony:
        return harmony_grammar(tools, model.tokenizer, is_required, grammar) if is_strict else None
    if tools and is_strict:
        assert abilities.form is not None, "tools were checked"
        grammar = calls_grammar(abilities.form, tools, model.tokenizer, is_required, is_single, grammar)
    if grammar is None or abilities.marks is None:
        return grammar
    return thinking_grammar(grammar, abilities.marks, is_thinking, model.tokenizer)
