"""The tags of HTML that matter for a page's text: what they do, by bits (HTML Living Standard, 13.2.6 and 15.3).

Every other tag only says how its text looks, and is left out of the page; its text stays.
"""

import numpy as np
from numpy.typing import NDArray

KEPT = 1  # the tag is there: it parts blocks, or says what belongs to what
BLOCK = 2  # it stays where it is, so that white space around it means nothing
LOST = 4  # it goes with all up to its end tag
RAW = 8  # no tags are in it, up to its end tag
EMPTY = 16  # it has no end tag
LINK, HEADING, CELL, ROW, TABLE, CODE, PARAGRAPH, ARTICLE, MAIN, DRAWING, FORMULA, COUNTED, TITLED = (
    1 << bit for bit in range(5, 18)
)

_OF_NAMES = (
    (
        KEPT | BLOCK,
        "address article aside blockquote center dd details div dl dt fieldset figcaption figure footer h1 h2 h3 h4 h5 "
        "h6 header hgroup li main nav ol p pre section ul",
    ),
    (
        KEPT,
        "html head body frameset form table caption tbody td tfoot th thead tr dialog dir listing menu search "
        "summary plaintext noscript template svg button label option optgroup select",
    ),
    (KEPT | EMPTY, "br hr frame"),
    (KEPT | RAW, "title textarea xmp noembed noframes"),
    (LOST, "script style iframe"),
    (EMPTY, "area base basefont bgsound col embed image img input keygen link meta param source track wbr"),
    (LINK, "a"),
    (HEADING, "h1 h2 h3 h4 h5 h6"),
    (CELL, "td th"),
    (ROW, "tr"),
    (TABLE, "table"),
    (CODE, "pre"),
    (PARAGRAPH, "p"),
    (ARTICLE, "article"),
    (MAIN, "main"),
    (DRAWING, "svg"),
    (FORMULA, "math script"),
    (COUNTED, "ul ol li pre"),  # resiliparse counts how deep they are, and misses the end of one with nothing in it
    (TITLED, "h1 h2 h3 h4 h5 h6 dt section"),  # an id is made of its heading, and says nothing of what it is for
)  # fmt: skip


SEED, PRIME = 0xCBF29CE484222325, 0x100000001B3  # FNV-1a


def hash_of_name(name: str) -> int:
    """The hash by which a tag or an attribute is known, 64 bits."""
    found = SEED
    for byte in name.encode():
        found = (found ^ byte) * PRIME % (1 << 64)
    return found


def _tags() -> dict[str, int]:
    found: dict[str, int] = {}
    for bits, names in _OF_NAMES:
        for name in names.split():
            found[name] = found.get(name, 0) | bits
    return found


def _table() -> NDArray[np.uint64]:
    table = np.zeros((512, 2), np.uint64)
    for name, bits in _tags().items():
        place = hash_of_name(name) % len(table)
        while table[place, 0]:
            place = (place + 1) % len(table)
        table[place] = hash_of_name(name), bits
    return table


# A row for each tag, its hash and what it does, at the place that the hash's lower bits say, or behind it. The compiled
# loops are given it: Numba would keep a constant of theirs until their own file changes.
KNOWN = _table()
