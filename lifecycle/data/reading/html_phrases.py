"""Phrases that stand on every page and say nothing: notices, bylines, the words of buttons.

A word that could be the name of something, such as `print` in a manual, is none of them.
"""

import re
from collections.abc import Sequence

from lifecycle.data.reading.html_marks import HEADING, LINK, LINK_END

SHORT, LONGEST = 60, 120  # characters of a line that is such a phrase, and of one that has one in it
LONGEST_NOTICE = 700  # characters of a notice on cookies
_EDGES = f" \t*·•:|-\u2013—→»«\u203a\u2039<>()[]!….{LINK}{LINK_END}{HEADING}"
_LINES = frozenset(
    line.strip()
    for line in """
    advertisement|advertising|advert|anzeige|werbung|publicité|publicidad|iklan|reklam|реклама|広告|广告|sponsored links
    skip to content|skip to main content|back to top|jump to recipe|jump to navigation|jump to search|back to gallery
    share this|share on|share this article|share this post|share this story|share article|share this page|breaking news
    add to basket|add to cart|add to bag|add to wishlist|buy now|get started|apply now|read more|continue reading
    load more|show more|see more|view more|learn more|leave a reply|leave a comment|post a reply|post a comment
    no comments|no comments yet|comments are closed|log in|sign in|sign up|subscribe now|was this page helpful?
    next post|previous post|you may also like|you might also like|up next|related articles|related stories|related tags
    artikel teilen|weiterlesen|mehr lesen|lire la suite|leer más|поделиться|читать далее|分享到|ツイート|シェア|공유
    recommended for you|recommended stories|trending news|trending now|most popular|most read|explore further
    follow us|just watched|must watch|image copyright getty images|thank you for subscribing|accept all|don't miss
    """.replace("\n", "|").split("|")
    if line.strip()
)
_BEGINS = (
    "posted by ", "posted on ", "posted in ", "posted at ", "filed under", "share this ", "follow us ",
    "share article ", "click to share", "sign up for ", "photo credit", "image credit", "image source",
    "image copyright", "powered by ",
)  # fmt: skip
_DATED = (
    "published", "last updated", "last modified", "last changed", "last edited", "updated", "asked ", "viewed ",
    "by ", "von ", "par ", "por ", "veröffentlicht", "publié le", "publicado el", "última actualización",
)  # fmt: skip
_OF_DATES = frozenset(
    """
    january february march april may june july august september october november december jan feb mar apr jun jul aug
    sep sept oct nov dec monday tuesday wednesday thursday friday saturday sunday mon tue wed thu fri sat sun am pm est
    edt gmt utc bst cst pst et published updated posted on at ago hours hour minutes minute days day min mins read st nd
    rd th
    """.replace("\n", " ").split()
)
_LEGAL = (
    "©", "(c) 1", "(c) 2", "copyright 1", "copyright 2", "all rights reserved", "powered by", "privacy policy",
    "terms of use", "terms of service", "uses cookies", "use cookies", "alle rechte vorbehalten",
    "tous droits réservés", "todos los derechos", "все права защищены", "版权所有", "wszelkie prawa zastrzeżone",
    "tüm haklar\u0131", "جميع الحقوق محفوظة", "सर्वाधिकार सुरक्षित", "無断転載", "무단 전재", "opens in new window",
)  # fmt: skip
_ASKING = (
    "this site", "our site", "website", "browser", "consent", "continuing", "personalis", "personaliz", "partners",
)  # fmt: skip
_WORD = re.compile(r"[^\W\d_]+")


def is_phrase(line: str) -> bool:
    """Whether a line of `SHORT` characters is one of the phrases as a whole, begins like one, or is only a date."""
    line = line.strip(_EDGES).lower()
    if line in _LINES or line.startswith(_BEGINS):
        return True
    if "19" not in line and "20" not in line and " ago" not in line:
        return line.startswith(("http://", "https://")) and " " not in line
    if line.startswith(_DATED):
        return any(map(str.isdigit, line[-12:] + line[:24]))
    words = _WORD.findall(line)
    return bool(words) and any(map(str.isdigit, line)) and _OF_DATES.issuperset(words)


def legal_lines(lines: Sequence[str], edge: int) -> list[int]:
    """The places of lines of law or trade among the first and the last `edge` lines."""
    places = [*range(min(edge, len(lines))), *range(max(edge, len(lines) - edge), len(lines))]
    edges = "\n".join([lines[place] for place in places]).lower()
    if "cookies" not in edges and not any(phrase in edges for phrase in _LEGAL):
        return []  # as for most pages: 22 phrases are looked for once, and not in each line
    return [place for place in places if is_legal(lines[place])]


def is_legal(line: str) -> bool:
    """Whether there is a phrase of law or trade in a short line, or a longer one asks for cookies."""
    if len(line) > LONGEST_NOTICE:
        return False
    line = line.lower()
    if "cookies" in line and any(word in line for word in _ASKING):
        return True
    return len(line) <= LONGEST and any(phrase in line for phrase in _LEGAL)
