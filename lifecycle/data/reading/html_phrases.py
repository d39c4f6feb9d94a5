"""Phrases that stand on every page and say nothing: notices, and the words of buttons."""

SHORT, LONGEST = 60, 120  # characters of a line that is such a phrase, and of one that has one in it
LONGEST_NOTICE = 700  # characters of a notice on cookies
_EDGES = " \t*•·:|-\u2013—→»«\u203a\u2039<>()[]!…."
_LINES = frozenset(
    """
    advertisement|advertising|ad|sponsored|anzeige|werbung|publicité|publicidad|reklam|reklama|реклама|広告|广告
    skip to content|skip to main content|back to top|top|jump to recipe|jump to navigation|jump to search|menu|search
    share|share this|share on|share this article|share this post|share this story|share article|print|tweet|email|reply
    add to basket|add to cart|add to bag|add to wishlist|buy now|get started|apply now|read more|continue reading
    load more|show more|see more|view more|learn more|leave a reply|leave a comment|post a reply|post a comment|comments
    no comments|log in|login|sign in|sign up|register|subscribe|subscribe now|was this page helpful?|loading|close|next
    previous|next post|previous post|you may also like|you might also like|up next|related articles|accept|accept all
    teilen|drucken|artikel teilen|weiterlesen|mehr lesen|partager|imprimer|lire la suite|compartir|imprimir|leer más
    поделиться|читать далее|分享|分享到|ツイート|シェア|공유|thank you for subscribing|follow us|newsletter
    """.replace("\n", "|").split("|")
)
_LINES = frozenset(line.strip() for line in _LINES if line.strip())
_BEGINS = (
    "posted by", "posted on", "posted in", "posted at", "published", "last updated", "last modified", "updated on",
    "filed under", "share this ", "tags:", "follow us", "follow @", "click to share", "sign up for", "last changed",
    "last edited", "asked ", "viewed ", "veröffentlicht am", "publié le", "publicado el", "última actualización",
    "image source", "photo credit", "image credit", "getty images", "photo by", "photo:",
)  # fmt: skip
_LEGAL = (
    "©", "(c) 1", "(c) 2", "copyright 1", "copyright 2", "all rights reserved", "powered by", "privacy policy",
    "terms of use", "terms of service", "uses cookies", "use cookies", "alle rechte vorbehalten",
    "tous droits réservés", "todos los derechos", "все права защищены", "版权所有", "wszelkie prawa zastrzeżone",
    "tüm haklar\u0131", "جميع الحقوق محفوظة", "सर्वाधिकार सुरक्षित", "無断転載", "무단 전재", "opens in new window",
)  # fmt: skip
_ASKING = (
    "this site",
    "our site",
    "website",
    "browser",
    "consent",
    "continuing",
    "personalis",
    "personaliz",
    "partners",
)


def is_phrase(line: str) -> bool:
    """Whether a line of `SHORT` characters is one of the phrases as a whole, or begins like one."""
    line = line.strip(_EDGES).lower()
    return line in _LINES or line.startswith(_BEGINS)


def is_legal(line: str) -> bool:
    """Whether there is a phrase of law or trade in a short line, or a longer one asks for cookies."""
    if len(line) > LONGEST_NOTICE:
        return False
    line = line.lower()
    if "cookies" in line and any(word in line for word in _ASKING):
        return True
    return len(line) <= LONGEST and any(phrase in line for phrase in _LEGAL)
