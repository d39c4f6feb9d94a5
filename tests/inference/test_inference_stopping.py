"""Stop strings: the same output however the text is cut into pieces."""

from hypothesis import given, settings
from hypothesis import strategies as st

from lifecycle.inference.stopping import StopBuffer

TEXT = st.text(alphabet="ab\u00e9", max_size=30)


def reference(text: str, stops: list[str]) -> tuple[str, bool]:
    """Letter by letter: cut before the stop string that is complete first, the longest of those."""
    for end in range(1, len(text) + 1):
        found = [stop for stop in stops if text[:end].endswith(stop)]
        if found:
            return text[: end - max(map(len, found))], True
    return text, False


@settings(max_examples=300, deadline=None)
@given(TEXT, st.lists(st.text(alphabet="ab\u00e9", min_size=1, max_size=5), max_size=4), st.data())
def test_any_cutting_gives_the_reference_and_no_piece_of_a_stop(
    text: str, stops: list[str], data: st.DataObject
) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    expected, is_stopped = reference(text, stops)
    buffer = StopBuffer(stops)
    shown = ""
    for piece in pieces:
        shown += buffer.push(piece)
        assert expected.startswith(shown), "a piece of a stop string was shown"
    assert shown + buffer.finish() == expected
    assert buffer.is_stopped == is_stopped


def test_text_is_not_held_back_without_need() -> None:
    buffer = StopBuffer(["###"])
    assert buffer.push("one #") == "one "
    assert buffer.push("two ##") == "#two "
    assert buffer.push("#") == ""
    assert buffer.is_stopped
    assert buffer.push("more") == "" == buffer.finish()
