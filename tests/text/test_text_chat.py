"""Turns come from the template only, and the mask covers what the assistant says."""

import io
import json
import re
from datetime import datetime
from functools import cache
from pathlib import Path

import jinja2
import pytest
import sentencepiece
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.byte_tokenizer import ByteTokenizer
from lifecycle.text.chat import DEFAULT_TEMPLATE, FIXED_DATE, ChatError, ChatTemplate, Rendered
from lifecycle.text.tokenizer import Tokenizer, load_tokenizer

USER, ASSISTANT, SYSTEM = "user", "assistant", "system"

TRIMMING = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m.role == 'system' %}{% continue %}{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if loop.first and messages[-1].role == 'system' %}{{ messages[-1]['content'] | trim }}\n{% endif %}"
    "{{ m['content'].strip() }}<|im_end|>{% endfor %}"
)
# Cuts `<think>` from earlier answers and writes the last one's anew, as Qwen 3's and DeepSeek R1's do.
THOUGHTS = (
    "{% set last = messages|length - 1 %}{% for m in messages %}{% set said = m.content %}{% set thought = '' %}"
    "{% if '</think>' in said %}"
    "{% set thought = said.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set said = said.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 == last %}{{ '<think>\n' + thought + '\n</think>\n\n' }}{% endif %}"
    "{{ said + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# Contents go through macros, blocks, lists, replacements and a function of transformers.
ROUNDABOUT = (
    "{% macro put(x) %}{{ x }}{% endmacro %}{% macro wrap(x) %}{{ x }}{{ caller() }}{% endmacro %}"
    "{% set today = strftime_now('%Y') %}"
    "{% for m in messages %}{% generation %}{{ '<|im_start|>' ~ today ~ m['role'] }}\n"
    "{% if loop.index0 % 3 == 0 %}{{ put(m.content.replace('q', '')) | trim }}"
    "{% elif loop.index0 % 3 == 1 %}{{ ' '.join(m.content.split('b')) }}{{ m.content[:1] ~ m.content[1:] }}"
    "{% else %}{% set ns = namespace(all='') %}{% for c in m.content %}{% set ns.all = ns.all + c %}{% endfor %}"
    "{{ ns.all | replace('a', 'A') }}{{ m.content | tojson }}{{ ['b', m.content] | join(m.content) }}"
    "{{ 'b'.replace('b', m.content) }}"
    "{% call wrap(m.content) %}{{ m.content }}{% endcall %}{% filter trim %}{{ m.content }}{% endfilter %}{% endif %}"
    "<|im_end|>{% endgeneration %}{% endfor %}"
)
INST = (
    "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content | trim + ' [/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"
)


def say(*turns: tuple[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": content} for role, content in turns]


def learned(tokenizer: Tokenizer, rendered: Rendered) -> str:
    ids = [i for i, is_said in zip(rendered.ids, rendered.assistant_mask, strict=True) if is_said]
    return tokenizer.decode(ids, skip_special=False)


def plain_render(source: str, messages: list[dict[str, str]], bos: str, add_generation_prompt: bool) -> str:
    """The same template by plain jinja2, content as it is."""
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"])
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    known = {"strftime_now": FIXED_DATE.strftime}
    template = environment.from_string(re.sub("{% (end)?generation %}", "", source), globals=known)
    return template.render(messages=messages, bos_token=bos, add_generation_prompt=add_generation_prompt)


def test_the_text_is_the_template_s(tokenizer: Tokenizer) -> None:
    names = {i: name for name, i in tokenizer.special_ids.items()}
    bos = names[tokenizer.bos_id] if tokenizer.has_bos else ""  # undefined in transformers too
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
    assert learned(tokenizer, rendered) == "two<|im_end|>\n4<|im_end|>\n"
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
         "\ufdd0", "a", "b", " ", "\n", "<|im_", "end|>", "<think>",
         "</think>"]
    ),
    max_size=8,
).map("".join)  # fmt: skip


@cache
def _loaded(folder: Path) -> tuple[Tokenizer, tokenizers.Tokenizer]:
    return load_tokenizer(folder), tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


ORDINARY = st.text(alphabet=" \n.ab?\u00e9\U0001f600", max_size=8)


@pytest.mark.parametrize(
    ("kind", "source"),
    [
        pytest.param("hf", THOUGHTS, id="thoughts"),
        pytest.param("hf", ROUNDABOUT, id="roundabout"),
        pytest.param("metaspace", THOUGHTS, id="one-space"),
    ],
)
@settings(max_examples=8, deadline=None)
@given(said=st.lists(ORDINARY, min_size=4, max_size=4), question=ORDINARY.filter(str.strip))
def test_published_templates_give_transformers_ids(
    kind: str, source: str, said: list[str], question: str, request: pytest.FixtureRequest
) -> None:
    """`apply_chat_template` renders, then encodes the text with the special tokens in it, and nothing else."""
    folder = request.getfixturevalue(f"{kind}_folder")
    tokenizer, raw = _loaded(folder)
    template = ChatTemplate(tokenizer, source)
    contents = [said[0] + "x", said[1], said[2] + "x", f"<think>\n{said[3]}\n</think>\n\n{question}"]
    messages = say(*[((USER, ASSISTANT)[i % 2], content) for i, content in enumerate(contents)])
    for end in (1, 4):
        rendered = template.render(messages[:end])
        text = plain_render(source, messages[:end], "<s>" if tokenizer.has_bos else "", False)
        assert rendered.ids == raw.encode(text, add_special_tokens=False).ids


def test_special_tokens_take_the_spaces_beside_them_if_the_file_says_so(hf_folder: Path, tmp_path: Path) -> None:
    """As the tokenizers library does with the whole text (Phi-3's `<|end|>`)."""
    tree = json.loads((hf_folder / "tokenizer.json").read_text())
    for token in tree["added_tokens"]:
        token |= {"lstrip": token["content"] == "<|im_end|>", "rstrip": token["content"] != "<|endoftext|>"}
    (tmp_path / "tokenizer.json").write_text(json.dumps(tree))
    (tmp_path / "tokenizer_config.json").write_text((hf_folder / "tokenizer_config.json").read_text())
    tokenizer, raw = _loaded(tmp_path)
    source = "{% for m in messages %}<|im_start|>\n{{ m.content }} <|im_end|>\n{% endfor %}<|endoftext|> x"
    for content in ("a b", " a ", " \n"):
        messages = say((USER, content), (ASSISTANT, content))
        text = plain_render(source, messages, "", False)
        assert ChatTemplate(tokenizer, source).render(messages).ids == raw.encode(text, add_special_tokens=False).ids


def test_text_between_special_tokens_is_encoded_as_one(llama_folder: Path) -> None:
    """With a model that begins each text with a space, there is one before `[INST]`, and none before the content."""
    tokenizer = load_tokenizer(llama_folder)
    raw = sentencepiece.SentencePieceProcessor(model_file=str(llama_folder / "tokenizer.model"))
    messages = say((USER, " What is it? "), (ASSISTANT, "the answer"), (USER, "more </s> [INST]"))
    rendered = ChatTemplate(tokenizer, INST).render(messages)
    turns = ["[INST] What is it? [/INST] the answer ", "[INST] more </s> [INST] [/INST]"]
    first, second = map(raw.encode, turns)
    assert rendered.ids == [1, *first, 2, 1, *second]
    assert learned(tokenizer, rendered) == " the answer </s>"[1:]  # one space is the first token's, which decode drops
    assert rendered.ids.count(tokenizer.eos_id) == 1


def test_legacy_false_begins_only_the_first_text_with_a_space(llama_folder: Path, tmp_path: Path) -> None:
    """As transformers' `LlamaTokenizer` does: ids by `legacy: false`, whose pieces after `</s>` have no space."""
    (tmp_path / "tokenizer.model").write_bytes((llama_folder / "tokenizer.model").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"legacy": False}))
    tokenizer = load_tokenizer(tmp_path)
    pieces = [tokenizer.token_bytes(i) for i, _, _ in tokenizer.encode_spans("some words", is_first=False)]
    assert b"".join(pieces) == b"some words"
    assert b"".join(map(tokenizer.token_bytes, tokenizer.encode("some words"))) == b" some words"


@pytest.mark.parametrize(("prefix", "spaces"), [("", ""), ("  ", "\n\n")])
def test_thoughts_are_learned_in_the_last_answer_and_cut_from_earlier_ones(prefix: str, spaces: str) -> None:
    tokenizer = ByteTokenizer()
    template = ChatTemplate(tokenizer, THOUGHTS)
    thought = f"{prefix}<think>\nhm\n</think>\n\nyes{spaces}"
    whole = template.render(say((USER, "q"), (ASSISTANT, thought)))
    assert learned(tokenizer, whole) == f"<think>\nhm\n</think>\n\nyes{spaces}<|im_end|>\n" and not whole.cut
    later = template.render(say((USER, "q"), (ASSISTANT, thought), (USER, "r"), (ASSISTANT, "no")))
    assert learned(tokenizer, later) == f"yes{spaces}<|im_end|>\nno<|im_end|>\n".replace(
        "no", "<think>\n\n</think>\n\nno"
    ) and later.cut == {1}
    assert [i for i in later.said_in if i >= 0] == [1] * len(f"yes{spaces}!\n") + [3] * len(
        "<think>\n\n</think>\n\nno!\n"
    )
    prompt = template.render(
        say((USER, "q"), (ASSISTANT, "<think>hm</think>"), (USER, "r")), add_generation_prompt=True
    )
    assert "hm" not in tokenizer.decode(prompt.ids)


@settings(max_examples=25, deadline=None)
@given(contents=st.lists(ATTACKS, min_size=3, max_size=4))
def test_no_content_can_make_a_turn_in_a_template_that_cuts(contents: list[str]) -> None:
    tokenizer = ByteTokenizer()
    messages = say(*[((USER, ASSISTANT)[i % 2], content + "x") for i, content in enumerate(contents)])
    for template in (ChatTemplate(tokenizer, THOUGHTS), ChatTemplate(tokenizer, ROUNDABOUT)):
        try:
            rendered = template.render(messages)
        except ChatError as refused:  # of a user's </think>
            assert "(user), or a part of it" in str(refused)
            continue
        for name in ("<|im_start|>", "<|im_end|>"):
            assert rendered.ids.count(tokenizer.special_ids[name]) == len(messages)


@settings(max_examples=150, deadline=None)
@given(contents=st.lists(ATTACKS, min_size=1, max_size=4))
def test_no_content_can_make_a_turn(sentencepiece_tokenizer: Tokenizer, contents: list[str]) -> None:
    template = ChatTemplate(sentencepiece_tokenizer)
    messages = say(*[((USER, ASSISTANT)[i % 2], content) for i, content in enumerate(contents)])
    rendered = template.render(messages)
    for name in ("<|im_start|>", "<|im_end|>"):
        assert rendered.ids.count(sentencepiece_tokenizer.special_ids[name]) == len(messages)
    assert rendered.ids.count(sentencepiece_tokenizer.bos_id) == 1
    said = "".join(content + "<|im_end|>\n" for content in contents[1::2] if content)
    assert learned(sentencepiece_tokenizer, rendered) == said


def test_a_special_token_that_a_template_writes_in_parts_is_whole() -> None:
    tokenizer = ByteTokenizer()
    source = "{% for m in messages %}<|im_{{ 'start' }}|>{{ m.content }}{{ '<|' ~ 'im_end' ~ '|>' }}{% endfor %}"
    rendered = ChatTemplate(tokenizer, source).render(say((USER, "<|im_end|>")))
    start, end = (tokenizer.special_ids[name] for name in ("<|im_start|>", "<|im_end|>"))
    assert rendered.ids == [start, *b"<|im_end|>", end]


@pytest.mark.parametrize("change", ["[:3]", ".replace('o', '0')", ".split('!')[0]"])
def test_what_the_model_is_told_is_neither_cut_nor_changed(change: str) -> None:
    template = ChatTemplate(ByteTokenizer(), f"{{% for m in messages %}}{{{{ m.content{change} }}}}{{% endfor %}}")
    assert template.render(say((USER, "yes"))).ids == list(b"yes")
    with pytest.raises(ChatError, match=r"leaves out message 1 \(user\), or a part of it"):
        template.render(say((USER, "go on!")))


def test_the_day_is_part_of_a_chat_and_not_of_a_row() -> None:
    template = ChatTemplate(ByteTokenizer(), "{{ strftime_now('%d %b %Y') }}{{ messages[0].content }}")
    row, chat = (t.tokenizer.decode(t.render(say((USER, "!"))).ids) for t in (template, template.live))
    assert row == "26 Jul 2024!" and chat == f"{datetime.now():%d %b %Y}!"
    assert template.live.dated.render(say((USER, "!"))).ids == template.render(say((USER, "!"))).ids


def test_a_name_is_a_content_and_must_be_rendered(sentencepiece_tokenizer: Tokenizer) -> None:
    named = [{"role": "user", "content": "hi", "name": "<|im_end|>"}]
    template = ChatTemplate(sentencepiece_tokenizer, "{{ messages[0]['name'] }}{{ messages[0]['content'] }}")
    assert template.render(named).ids == sentencepiece_tokenizer.encode("<|im_end|>hi")
    with pytest.raises(ChatError, match=r"leaves out message 1 \(user\)"):
        ChatTemplate(sentencepiece_tokenizer).render(named)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "list is empty"),
        ("hi", "expected a list"),
        (["hi"], "message 1: expected a mapping"),
        (
            [{"role": "robot", "content": "x"}],
            "message 1: unknown role 'robot'; known: system, developer, user, assistant, tool",
        ),
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
        ("{{ messages[0]['content'] | urlize }}", "filter 'urlize' on a message's content is not supported"),
        ("{{ messages[0]['content'].zfill(20) }}", "changes a message in a way that cannot be followed"),
        ("{{ '%s' % messages[0]['content'] }}", "cannot be followed"),
        ("{{ '{}'.format(messages[0]['content']) }}", "cannot be followed"),
        ("{{ 'x'.ljust(9, messages[0]['content'][0]) }}", "cannot be followed"),
        ("{{ ('a' + messages[0]['content']) | title }}", "cannot be followed"),
        ("{{ messages[0]['content'].split() | pprint }}", "cannot be followed"),
        ("hello", r"leaves out message 1 \(user\)"),
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
    listed = [{"name": "default", "template": TRIMMING}, {"name": "tool_use", "template": ""}]
    for value in (TRIMMING, listed):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": value}))
        assert ChatTemplate.load(tmp_path, sentencepiece_tokenizer).source == TRIMMING
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": listed[1:]}))
    with pytest.raises(ChatError, match="chat templates are named tool_use, none default; save the one to use"):
        ChatTemplate.load(tmp_path, sentencepiece_tokenizer)


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
