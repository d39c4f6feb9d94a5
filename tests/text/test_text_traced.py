"""Traced text does as plain text does, and every character keeps its origin."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.text.traced import (
    CHANGED,
    OWN,
    UNTRACED,
    Run,
    TextOrigin,
    Traced,
    concatenated,
    has_content,
    plain,
    runs_of,
)

OURS, SAID = "AB\n", "ab "  # a character tells by itself whose it is: the template's, or a message's
RUNS = st.lists(
    st.one_of(
        st.tuples(st.text(OURS, max_size=3), st.just(OWN)), st.tuples(st.text(SAID, max_size=3), st.just(TextOrigin(0)))
    )
)
SHORT = st.text(OURS + SAID, min_size=1, max_size=2)


def assert_same(found: str, expected: str) -> None:
    assert found == expected and plain(found) == expected
    for text, origin in runs_of(found):
        assert set(text) <= set(OURS if origin.message is None else SAID)


@settings(max_examples=60, deadline=None)
@given(runs=RUNS, part=SHORT, other=RUNS, cut=st.slices(8), count=st.integers(-1, 3))
def test_operations_are_those_of_plain_text(
    runs: list[Run], part: str, other: list[Run], cut: slice, count: int
) -> None:
    text, new = Traced(runs), Traced(other)
    raw, raw_new = plain(text), plain(new)
    if cut.step in (None, 1):
        assert_same(text[cut], raw[cut])
    for chars in (None, part):
        assert_same(text.strip(chars), raw.strip(chars))
        for found, expected in [(text.split, raw.split), (text.rsplit, raw.rsplit)]:
            pairs = zip(found(chars, count), expected(chars, count), strict=True)
            assert all(assert_same(*pair) is None for pair in pairs)
    for method in ("partition", "rpartition"):
        pairs = zip(getattr(text, method)(part), getattr(raw, method)(part), strict=True)
        assert all(assert_same(*pair) is None for pair in pairs)
    assert_same(text.replace(part, new, count), raw.replace(part, raw_new, count))
    assert_same(text.removeprefix(part).removesuffix(part), raw.removeprefix(part).removesuffix(part))
    assert_same(text + new, raw + raw_new)
    assert_same("A" + text, "A" + raw)
    assert_same(text.join([new, "B", new]), raw.join([raw_new, "B", raw_new]))
    assert_same(concatenated(text), raw)  # character by character
    assert json.loads(plain(text.quoted(json.dumps))) == raw
    assert (text == raw, part in text, len(text), hash(text)) == (True, part in raw, len(raw), hash(raw))


@pytest.mark.parametrize("name", UNTRACED)
def test_what_is_not_traced_is_refused(name: str) -> None:
    arguments = {"__mul__": (2,), "__rmul__": (2,), "__format__": ("",), "__mod__": ("a",), "__rmod__": ("%s",)}
    arguments |= {"center": (9,), "ljust": (9,), "rjust": (9,), "zfill": (9,), "translate": ({},), "format_map": ({},)}
    with pytest.raises(ValueError, match="cannot be followed"):
        getattr(Traced([("a", TextOrigin(0))]), name)(*arguments.get(name, ()))


@pytest.mark.parametrize("name", CHANGED)
def test_text_of_one_origin_may_be_changed_and_keeps_it(name: str) -> None:
    text = "\tone TWO\nthree"
    found, expected = getattr(Traced([(text, TextOrigin(3))]), name)(), getattr(text, name)()
    for part, whole in zip(*((found, expected) if isinstance(found, list) else ([found], [expected])), strict=True):
        assert runs_of(part) == ((whole, TextOrigin(3)),)
    with pytest.raises(ValueError, match="cannot be followed"):
        getattr(Traced([("a", TextOrigin(0)), ("b", TextOrigin(1))]), name)()


def test_text_of_the_template_alone_may_be_anything() -> None:
    text = Traced([("a b", OWN)])
    assert not has_content(text) and text.title() == str(text).title() == "A B" and f"{text}" == "a b"


def test_every_method_of_text_is_traced_or_refused() -> None:
    """A new method of `str` that returns text would lose the origin."""
    looks = {name for name in dir(str) if name.startswith(("is", "find", "rfind", "index", "rindex", "count"))}
    looks |= {"startswith", "endswith", "maketrans"}
    methods = {name for name in dir(str) if not name.startswith("_")} - looks
    assert methods <= set(vars(Traced))
