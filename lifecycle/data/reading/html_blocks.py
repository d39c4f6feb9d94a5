"""Which blocks of a page are beside its text, by the names that their authors gave them: sidebars, notices, sharing.

Names are conventions, so a block with the page's heading or article in it is never one of them.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

# Landmarks and windows (ARIA 1.2).
ROLES = frozenset((
    "navigation", "complementary", "contentinfo", "search", "dialog", "alertdialog", "menu", "menubar",
))  # fmt: skip
# What common publishing programs name the block with the text.
ARTICLES = frozenset((
    "article-body", "articleBody", "article__body", "article-content", "article__content", "article-text",
    "articletext", "entry-content", "post-content", "post-body", "post__content", "story-body", "story-content",
    "story__body", "content__article-body", "blog-content", "single-content",
))  # fmt: skip

_WHOLE = (
    r"(?:site|page|global|main|top|left|right|bottom|primary|secondary|sub|side|app|mobile|header|footer|foot|wp|l|m|"
    r"wy|mw|js)?[-_]*(?:nav(?:bar|igation|links?)?|menus?|menubar|breadcrumbs?|crumbs?|footer|foot|masthead|toolbar|toc|"
    r"sitesub|postprofile|signature|linklist|comments?|reply|respond|search|share|tags?|ads?|logo|panel|login|pager|"
    r"pagination|copyright|meta|author|autor|date|datum|timestamp|dateline|gallery|carousel|slideshow|linenos?|lineno|line-numbers|headerlink|"
    r"anchor-link|mw-editsection|printfooter|hatnote|stats|byline|print|jumpbox|sns|colophon|votecell|bottom-?nav)"
)
_PART = (
    r"[\w-]*cookie[\w-]*|[\w-]*consent[\w-]*|gdpr|newsletter|sidebar|share(?:daddy|s|d|bar)?|sharing|social|"
    r"related(?:posts|links)?|recommend(?:ed|ations?)?|byline|breadcrumbs?|advert(?:isement|isements)?|ad|ads|popup|modal|promo|paywall|"
    r"subscribe|subscription|signup|trending|sponsored|outbrain|taboola|gallery|carousel|slideshow|pagination|skiplink|catlinks|postprofile|"
    r"bottom-nav|toc|signin|lightbox|mailchimp|disqus|donate"
)
_PAIRS = (
    r"(?:entry|post|article|story|blog)[-_]?(?:meta|footer|author|date|tags?|taglist|nav(?:igation)?|utility|menu|info|"
    r"share|comments?)|comments?[-_](?:list|area|section|form|wrapper|container|respond)|most[-_](?:read|popular)|"
    r"(?:more|other|read|popular|latest|recent)[-_](?:articles|posts|stories|news|links|next|on)|"
    r"author[-_](?:bio|box|info)|file[-_]navigation|site[-_](?:header|title|description|branding)|up[-_]next|posted[-_]on|page[-_](?:header|footer)"
)
_NAME = re.compile(
    rf"(?:^|[ ])(?:{_WHOLE})(?=$|[ ])|(?:^|[ _-])(?:{_PART})(?=$|[ _-])|"
    rf"(?:^|[ ])(?:[a-z]+[-_])?(?:{_PAIRS})(?=$|[ _-])",
    re.IGNORECASE,
)
_STATES = re.compile(r"(?:^|(?<= ))(?:has|no|with|is|not|hide|show)[-_]\S+")
_ATTRIBUTES = {name: re.compile(rf"""{name}=("[^"]*"|'[^']*'|[^\s>"']+)""") for name in ("class", "id", "role")}
LONGEST = 300  # characters of classes
MOST = 200  # blocks of different names


@dataclass(frozen=True)
class Names:
    """The values of some attributes in a page."""

    classes: frozenset[str]
    ids: frozenset[str]
    roles: frozenset[str]

    @classmethod
    def of(cls, html: str) -> Self:
        """The names in a page."""
        return cls(_values(html, "class"), _values(html, "id"), _values(html, "role"))

    def beside_text(self) -> Iterator[str]:
        """CSS selectors of the blocks that are beside the page's text."""
        for role in sorted(ROLES & self.roles):
            yield f"[role={role}]"
        named = (("class", self.classes), ("id", self.ids))
        found = [f'[{name}="{value}"]' for name, values in named for value in sorted(filter(_is_beside, values))]
        if found:
            yield f":is({','.join(found[:MOST])}):not(body,html,main,article):not(:has(h1,main,article,p~p~p~p))"

    def around_text(self) -> str | None:
        """A CSS selector of the blocks that the page's text is in; None if none is named so."""
        found = [f'[class="{value}"]' for value in sorted(self.classes) if not ARTICLES.isdisjoint(value.split())]
        return ",".join([*found, *(["[role=main]"] if not found and "main" in self.roles else [])]) or None


def _values(html: str, name: str) -> frozenset[str]:
    """The values of an attribute."""
    return frozenset(value.strip("\"'") for value in set(_ATTRIBUTES[name].findall(html)))


@lru_cache(maxsize=1 << 14)
def _is_beside(value: str) -> bool:
    """Whether a block's classes or its id say so."""
    if len(value) > LONGEST or not value.isprintable() or "\\" in value or '"' in value:
        return False
    return _NAME.search(_STATES.sub("", value)) is not None
