"""The formulas of a web page: TeX in their place, as MathML carries it along (MathML Core, 6.1; LaTeXML) or MathJax is
given it."""

import html as entities
import re

_TEX_SCRIPT = re.compile(
    r"""<script[^>]{0,99}type\s?=\s?["']?math/tex(;\s?mode=display)?[^>]{0,99}>(.{0,9999}?)</script\s?>""",
    re.IGNORECASE | re.DOTALL,
)
_TEX_NOTE = re.compile(r"""<annotation[^>]{0,99}application/x-tex[^>]{0,99}>(.{0,9999}?)</annotation>""", re.DOTALL)
_TEX_ATTRIBUTE = re.compile(r"""\balttext=("[^"]*"|'[^']*')""")
LONGEST_TAG = 5000  # characters of a formula's tag
_DISPLAY_STYLE = re.compile(r"^\{\\(?:display|text)style (.*)\}$", re.DOTALL)


def with_tex(html: str) -> str:
    """The page with TeX in the place of formulas that have it."""
    if "math/tex" in html:
        html = _TEX_SCRIPT.sub(lambda found: entities.escape(_formula(found[2], bool(found[1])), quote=False), html)
    kept: list[str] = []
    at = 0
    while (opened := html.find("<math", at)) >= 0 and (closed := html.find("</math>", opened)) >= 0:
        formula = html[opened:closed]
        tex = _TEX_NOTE.search(formula) or _TEX_ATTRIBUTE.search(formula[:LONGEST_TAG])
        kept.append(html[at:opened])
        if tex and tex[1].strip("\"' \n"):
            shown = _formula(tex[1].strip("\"' \n"), 'display="block"' in formula[:LONGEST_TAG])
            kept.append(shown.replace("<", "&lt;"))
        else:
            kept.append(f"{formula}</math>")
        at = closed + len("</math>")
    return "".join((*kept, html[at:]))


def _formula(tex: str, is_displayed: bool) -> str:
    tex = " ".join(tex.split())
    if found := _DISPLAY_STYLE.match(tex):
        tex = found[1].strip()
    return f"$${tex}$$" if is_displayed else f"${tex}$"
