"""Which blocks of a page are beside its text, by the names that their authors gave them: sidebars, notices, sharing.

Names are conventions, so a block with the page's heading or article in it is never one of them.
"""

import re
from functools import lru_cache

# Landmarks and windows (ARIA 1.2).
ROLES = frozenset((
    b"navigation", b"complementary", b"contentinfo", b"search", b"dialog", b"alertdialog", b"menu", b"menubar",
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
    r"anchor-link|mw-editsection|printfooter|hatnote|stats|byline|print|jumpbox|sns|colophon|votecell|bottom-?nav|widget)"
    r"(?:[-_]*(?:wrapper|wrap|container|area|bar))?"
)
_PART = (
    r"gdpr|newsletter|sidebar|share(?:daddy|s|d|bar)?|sharing|social|"
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
# Each begins with the blank or dash before a name, which is looked for first; names are in small letters, since without
# regard to case nothing is (1.1 for 3.7 us a name).
_NAME = re.compile(
    rf"[ _-](?:(?:{_PART})(?![^ _-])|(?<=[ ])(?:(?:{_WHOLE})(?![^ ])|(?:[a-z]+[-_])?(?:{_PAIRS})(?![^ _-])))"
)
_NOTICE = re.compile(r"[ _-][\w-]*(?:cookie|consent)[\w-]*(?![^ _-])")
# What is not the page's own, however many paragraphs or articles are in it.
_FOREIGN = re.compile(
    r"(?<![^ ])(?:(?:user|post|article|page)?[-_]*comments?(?:[-_](?:list|area|section|form|wrapper|container))?|"
    r"nocontent|respond)(?![^ ])|"
    r"[ _-](?:modal|popup|lightbox|newsletter|disqus|outbrain|taboola|trending|sponsored|"
    r"related[-_]?(?:posts|links|articles|stories|news)|recommend(?:ed|ations?)?|"
    r"(?:more|other|popular|latest|recent)[-_](?:articles|posts|stories|news))(?![^ _-])"
)
_STATES = re.compile(r" (?:has|no|with|is|not|hide|show)[-_]\S+")
LONGEST = 300  # characters of classes
# Formulas that a program has drawn, which are there as TeX too; the first of them if the page has formulas.
_DRAWN_MATHML, _DRAWN = frozenset(("katex-html",)), frozenset(("MathJax_Preview", "MathJax", "MathJax_Display"))
# What is said of a block, by bits: it is beside the text, by its name or by its role; not shown; around the text, by
# its name or by its role; beside the text in any case.
BESIDE, LANDMARK, HIDDEN, AROUND, MAIN_ROLE, FOREIGN = (1 << bit for bit in range(6))


@lru_cache(maxsize=1 << 14)
def of_class(value: bytes, has_formulas: bool) -> int:
    """What a block's classes say of it."""
    names = value.decode().split()
    drawn = not _DRAWN.isdisjoint(names) or (has_formulas and not _DRAWN_MATHML.isdisjoint(names))
    around = not ARTICLES.isdisjoint(names)
    return _beside(" ".join(names)) | HIDDEN * drawn | AROUND * around


@lru_cache(maxsize=1 << 14)
def of_id(value: bytes) -> int:
    """What a block's id says of it."""
    return BESIDE * (_beside(value.decode()) > 0)  # manuals make ids of headings, such as `modal-windows`


def of_role(value: bytes) -> int:
    """What a block's role says of it."""
    return LANDMARK * (value in ROLES) | MAIN_ROLE * (value == b"main")


def _beside(name: str) -> int:
    """Whether a block of some classes is beside the text, and how surely."""
    if len(name) > LONGEST:
        return 0
    name = _STATES.sub(" ", f" {name}").lower()
    if _FOREIGN.search(name) is not None:
        return FOREIGN
    if _NAME.search(name) is not None:
        return BESIDE
    return BESIDE * (("cookie" in name or "consent" in name) and _NOTICE.search(name) is not None)
