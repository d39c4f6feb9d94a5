r"""The tokens of a formula, in LaTeX or plain: what has no meaning is left out, other ways to write a thing become one.

Spaces, sizes, styles, dollar signs, degrees and units go; letters without a backslash are a known name (`pi`), a unit
behind a number, a word, or a product of symbols.
"""

import re


class FormulaError(ValueError):
    """A text that is no formula."""


FUNCTIONS = {
    "sin",
    "cos",
    "tan",
    "cot",
    "sec",
    "csc",
    "arcsin",
    "arccos",
    "arctan",
    "asin",
    "acos",
    "atan",
    "sinh",
    "cosh",
    "tanh",
    "exp",
    "ln",
    "log",
    "lg",
    "sqrt",
    "abs",
    "max",
    "min",
    "gcd",
    "lcm",
    "floor",
    "ceil",
    "binom",
}
CONSTANTS = {
    "pi": "pi", "\u03c0": "pi", "infty": "oo", "infinity": "oo", "inf": "oo", "oo": "oo", "\u221e": "oo",
    "emptyset": "empty", "varnothing": "empty", "\u2205": "empty",
}  # fmt: skip
SETS = {"R": "reals", "Z": "integers", "N": "naturals", "Q": "rationals", "C": "complexes"}
GREEK = {
    "alpha",
    "beta",
    "gamma",
    "delta",
    "epsilon",
    "theta",
    "lambda",
    "mu",
    "nu",
    "rho",
    "sigma",
    "tau",
    "phi",
    "omega",
    "ell",
    "Delta",
}
WORDS = FUNCTIONS | CONSTANTS.keys() | GREEK | {"frac", "cup", "cap", "in", "pm", "mp"}
RELATIONS = {
    "=": "=", "<": "<", ">": ">", "<=": "<=", ">=": ">=", "!=": "!=", "le": "<=", "leq": "<=", "leqslant": "<=",
    "lt": "<", "ge": ">=", "geq": ">=", "geqslant": ">=", "gt": ">", "ne": "!=", "neq": "!=",
}  # fmt: skip
UNITS = {
    "cm",
    "mm",
    "km",
    "kg",
    "mg",
    "ml",
    "ft",
    "in",
    "lb",
    "lbs",
    "oz",
    "yd",
    "hr",
    "hrs",
    "min",
    "sec",
    "mph",
    "kph",
    "pm",
    "am",
    "deg",
    "rad",
    "usd",
    "mi",
    "gal",
    "cal",
    "sq",
    "cu",
    "hz",
    "kw",
}
WHOLE_WORDS = {"yes", "no", "true", "false", "none"}
MATRICES = ("pmatrix", "bmatrix", "vmatrix", "matrix", "array")
BOXES = "text|mbox|mathrm|textrm|textbf|mathbf|operatorname|boldsymbol|mathit|textit|rm"
SIZES = "left|right|big|Big|bigg|Bigg|bigl|bigr|Bigl|Bigr|displaystyle|textstyle|limits|mathstrut"

REWRITTEN: list[tuple[re.Pattern[str], str]] = [
    (re.compile(pattern), by)
    for pattern, by in (
        (r"\\begin\{([a-z]+)\}(\{[clr|]*\})?", r" \\begin:\1 "),
        (r"\\end\{([a-z]+)\}", r" \\end:\1 "),
        (r"\\\\(\[[^\]]*\])?", r" \\row "),
        (rf"\\(?:{SIZES})(?![a-zA-Z])\.?", " "),
        (r"\\[,;:!> ]|\\(?:quad|qquad|hspace\{[^}]*\}|phantom\{[^}]*\})|~|\u00a0|\u2009", " "),
        (r"\\(?:d|t|c)frac(?![a-zA-Z])", r"\\frac"),
        (r"\\\$|\$|\\\(|\\\)|\\\[|\\\]", " "),
        (r"(?:\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|\\degree|\u00b0)(?:\s*[CF]\b)?", " "),
        (r"(\d)\{,\}(?=\d{3})", r"\1,"),
        (r"\\%", "%"),
        (r"\\(?:text|mbox|textrm)\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])", " , "),
        (r"\\(?:mathbb|mathbf|Bbb)\s*\{?\s*([RZNQC])(?![a-zA-Z])\s*\}?", r" \\set:\1 "),
        (rf"(?<=[\d}})])\s*\\(?:{BOXES})\s*\{{[^{{}}]*\}}(?:\s*\^\s*(?:\{{\d\}}|\d))?", " "),
        (rf"\\(?:{BOXES})\s*\{{([^{{}}]*)\}}", r" \1 "),
        (r"\u2212|\u2013", "-"),
        (r"\\(?:cdot|times|ast)(?![a-zA-Z])|\u00d7|\u00b7|\u2217", " * "),
        (r"\*\*", "^"),
        (r"\\div(?![a-zA-Z])|\u00f7", " / "),
        (r"\\(?:lvert|rvert|vert|mid)(?![a-zA-Z])", "|"),
        (r"\\lbrace(?![a-zA-Z])", r"\\{"),
        (r"\\rbrace(?![a-zA-Z])", r"\\}"),
        ("\u2264", "<="), ("\u2265", ">="), ("\u2260", "!="), ("\u00b2", "^2"), ("\u00b3", "^3"),
        ("\u221a", r"\\sqrt "), ("\u222a", r"\\cup "), ("\u2229", r"\\cap "), ("\u00b1", r"\\pm "),
        ("\u2208", r"\\in "),
    )
]  # fmt: skip
TOKEN = re.compile(
    r"(?P<number>\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\d,])|\d+(?:\.\d+)?(?:[eE][-+]?\d+)?|\.\d+)"
    r"|(?P<command>\\[a-zA-Z]+(?::[a-zA-Z]+)?|\\[{}|])"
    r"|(?P<word>[a-zA-Z]+|[\u03c0\u221e\u2205])"
    r"|(?P<sign><=|>=|!=|[-+*/^_()\[\]{}|,;!=<>%&':])"
    r"|(?P<space>\s+)|(?P<other>.)",
    re.DOTALL | re.ASCII,
)
OPEN, CLOSED = {"(": ")", "[": "]", r"\{": r"\}"}, {")", "]", r"\}"}


def tokens_of(text: str) -> list[str]:
    """The tokens of a formula; raises `FormulaError` for a letter that no formula has."""
    for pattern, by in REWRITTEN:
        text = pattern.sub(by, text)
    text = text.strip().rstrip(".")
    found: list[str] = []
    depth, kind = 0, None
    for match in TOKEN.finditer(text):
        follows_space = kind == "space"
        kind, token = match.lastgroup, match[0]
        if kind == "other":
            raise FormulaError(f"unexpected {token!r}")
        depth += (token in OPEN or token == "{") - (token in CLOSED or token == "}")
        if kind == "number" and "," in token and depth > 0:  # a pair, not a thousand
            found += [part for piece in token.split(",") for part in (",", piece)][1:]
        elif kind == "word":
            found += _words(token, found, follows_space)
        elif kind != "space":
            found.append(token.replace(",", "") if kind == "number" else token)
    return found


def _words(word: str, before: list[str], follows_space: bool) -> list[str]:
    """Letters: a known name, a unit behind a number (dropped), a word, or a product of one-letter symbols."""
    is_counted = bool(before) and (before[-1][-1].isdigit() or before[-1] in (")", "}", "%"))
    is_unit = word.lower() in UNITS or len(word) >= (3 if follows_space else 4)
    if word in WORDS and not (is_counted and word in UNITS):
        return ["\\" + word]
    if len(word) > 1 and is_counted:
        name = next((known for known in sorted(WORDS, key=len, reverse=True) if word.startswith(known)), "")
        if name and not follows_space and len(word) <= len(name) + 1:  # 2pir
            return ["\\" + name, *word[len(name) :]]
        if is_unit:
            return []
    if len(word) > 3 or word.lower() in WHOLE_WORDS:
        return [f"\\text:{word.casefold()}"]
    return list(word)
