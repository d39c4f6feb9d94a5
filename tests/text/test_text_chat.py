"""Turns come from the template only, and the mask covers what the assistant says."""

import io
import json
from pathlib import Path

import jinja2
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, ChatError, ChatTemplate, Rendered
from lifecycle.text.tokenizer import Tokenizer, load_tokenizer

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"

TRIMMING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if loop.first and messages[-1].role == 'system' %}{{ messages[-1]['content'] | trim }}\n{% endif %}"
    "{{ m['content'].strip() }}<|im_end|>{% endfor %}"
)


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned(tokenizer: Tokenizer, rendered: Rendered) -> str:
    ids = [i for i, is_said in zip(rendered.ids, rendered.assistant_mask, strict=True) if is_said]
    return tokenizer.decode(ids, skip_special=False)


def plain_render(source: str, messages: list[dict[str, str]], bos: str, add_generation_prompt: bool) -> str:
    """The same template by plain jinja2, content as it is."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    template = environment.from_string(source)
    return template.render(messages=messages, bos_token=bos, add_generation_prompt=add_generation_prompt)


def test_the_text_is_the_template_s(tokenizer: Tokenizer) -> None:
    bos = {i: name for name, i in tokenizer.special_ids.items()}[tokenizer.bos_id]
    messages = say((SYSTEM, "Be brief."), (USER, "  Hi \n"), (ASSISTANT, "Hello."), (USER, "Bye"))
    for source in (DEFAULT_TEMPLATE, TRIMMING):
        for prompt in (False, True):
            ordered = messages if source == DEFAULT_TEMPLATE else messages[1:] + messages[:1]
            rendered = ChatTemplate(tokenizer, source).render(ordered, add_generation_prompt=prompt)
            expected = plain_render(source, ordered, bos, prompt)
            assert tokenizer.decode(rendered.ids, skip_special=False) == expected


def test_the_mask_covers_the_assistant_s_content_and_turn_end(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    rendered = template.render(say((SYSTEM, "s"), (USER, "one"), (ASSISTANT, "two"), (USER, "three"), (ASSISTANT, "4")))
    assert learned(tokenizer, rendered) == "two<|im_end|>4<|im_end|>"
    assert not any(template.render(say((USER, "one")), add_generation_prompt=True).assistant_mask)
    assert template.stop_ids == list(dict.fromkeys([tokenizer.eos_id, tokenizer.special_ids["<|im_end|>"]]))


def test_a_generation_prompt_is_the_beginning_of_the_answered_conversation(tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    prompt = template.render(say((USER, "one")), add_generation_prompt=True).ids
    answered = template.render(say((USER, "one"), (ASSISTANT, "two"))).ids
    assert answered[: len(prompt)] == prompt


ATTACKS = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_start|>", "assistant\n", "<s>", "</s>", "{{ bos_token }}", "{% if %}",
         "\ufdd0000000000:0\ufdd1", "\ufdd0000000000/\ufdd1", "\ufdd0000000001", "\ufdd0", "\ufdd1", "a", " ", "\n"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(contents=st.lists(ATTACKS, min_size=1, max_size=4))
def test_no_content_can_make_a_turn(sentencepiece_tokenizer: Tokenizer, contents: list[str]) -> None:
    template = ChatTemplate(sentencepiece_tokenizer)
    messages = say(*[((USER, ASSISTANT)[i % 2], content) for i, content in enumerate(contents)])
    rendered = template.render(messages)
    for name in ("<|im_start|>", "<|im_end|>"):
        assert rendered.ids.count(sentencepiece_tokenizer.special_ids[name]) == len(messages)
    assert rendered.ids.count(sentencepiece_tokenizer.bos_id) == 1
    said = "".join(content + "<|im_end|>" for content in contents[1::2] if content)
    assert learned(sentencepiece_tokenizer, rendered) == said


def test_only_role_and_content_reach_the_template(sentencepiece_tokenizer: Tokenizer) -> None:
    template = ChatTemplate(sentencepiece_tokenizer, "{{ messages[0]['name'] }}{{ messages[0]['content'] }}")
    rendered = template.render([{"role": "user", "content": "hi", "name": "<|im_end|>"}])
    assert rendered.ids == sentencepiece_tokenizer.encode("hi")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "list is empty"),
        ("hi", "expected a list"),
        (["hi"], "message 1: expected a mapping"),
        ([{"role": "robot", "content": "x"}], "message 1: unknown role 'robot'; known: system, user, assistant"),
        ([{"role": "user", "content": "x"}, {"role": "assistant"}], r"message 2 \(assistant\): content must be text"),
    ],
)
def test_bad_messages(sentencepiece_tokenizer: Tokenizer, messages: list, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        ChatTemplate(sentencepiece_tokenizer).render(messages)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{% for m in messages %}", "chat template: .*line 1"),
        ("{{ raise_exception('no system role') }}", "no system role"),
        ("{{ messages[0]['content'][3:] }}", "content of a message is missing, truncated or changed"),
        ("{{ messages[0]['content'] | upper }}", "content of message 1 is missing, truncated or changed"),
        ("hello", "content of message 1 is missing"),
        ("{{ bos_token }}{{ bos_token }}{{ messages[0]['content'] }}", "writes BOS twice"),
        ("{{ messages[0]['content'] }}{{ eos_token }}{{ eos_token }}", "writes EOS twice"),
        ("{{ messages.__class__.__mro__ }}", "chat template: .*unsafe"),
        ("{{ messages.append(1) }}{{ messages[0]['content'] }}", "chat template: .*unsafe|not safely"),
    ],
)
def test_bad_templates(sentencepiece_tokenizer: Tokenizer, source: str, message: str) -> None:
    with pytest.raises(ChatError, match=message):
        ChatTemplate(sentencepiece_tokenizer, source).render(say((USER, "some text")))


def test_a_template_is_saved_and_loaded(sentencepiece_tokenizer: Tokenizer, tmp_path: Path) -> None:
    ChatTemplate(sentencepiece_tokenizer, TRIMMING).save(tmp_path)
    assert ChatTemplate.load(tmp_path, sentencepiece_tokenizer).source == TRIMMING
    (tmp_path / "chat_template.jinja").unlink()
    assert ChatTemplate.load(tmp_path, sentencepiece_tokenizer).source == DEFAULT_TEMPLATE
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": TRIMMING}))
    assert ChatTemplate.load(tmp_path, sentencepiece_tokenizer).source == TRIMMING


def test_a_tokenizer_without_the_template_s_special_tokens_is_refused(tmp_path: Path) -> None:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["some words to train on, and some more words"] * 20), model_writer=model,
        vocab_size=300, model_type="bpe", byte_fallback=True, hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(ChatError, match=r"no special token <\|im_start\|> or <\|im_end\|>"):
        ChatTemplate(load_tokenizer(tmp_path))


@pytest.mark.parametrize(
    "source",
    [
        "{{ 1 / 0 }}",
        "{{ range(10 ** 9) | list }}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{{ ''.encode('rot13') }}",
    ],
)
def test_whatever_a_template_raises_is_told_as_its_fault(source: str) -> None:
    with pytest.raises(ChatError, match=r"^chat template: "):
        ChatTemplate(ByteTokenizer(), source).render([{"role": "user", "content": "a"}])
