"""What the commands of LaTeX mean for the text: which are characters, which take arguments that are no text."""

# ruff: noqa: RUF001

import unicodedata

# Commands that are a character. Those of one sign may have no blank behind them, names take the one that follows.
CHARACTERS = {
    "&": "&", "%": "%", "$": "$", "#": "#", "_": "_", "{": "{", "}": "}", " ": " ", "\n": " ", "\t": " ", ",": " ",
    ";": " ", ":": " ", "!": "", "/": "", "-": "", "@": "", "*": "", "ss": "ß", "ae": "æ", "AE": "Æ", "oe": "œ",
    "OE": "Œ", "o": "ø", "O": "Ø", "l": "ł", "L": "Ł", "i": "ı", "j": "ȷ", "aa": "å", "AA": "Å", "S": "§", "P": "¶",
    "copyright": "©", "pounds": "£", "dag": "†", "ddag": "‡", "dots": "…", "ldots": "…", "textellipsis": "…",
    "textendash": "–", "textemdash": "—", "textbackslash": "\\", "textasciitilde": "~", "textasciicircum": "^",
    "textunderscore": "_", "textbar": "|", "textless": "<", "textgreater": ">", "textquoteright": "’",
    "textquoteleft": "‘", "textquotedblleft": "“", "textquotedblright": "”", "textquotesingle": "'",
    "textbullet": "•", "textregistered": "®", "texttrademark": "™", "textdegree": "°", "textmu": "µ", "texteuro": "€",
    "euro": "€", "guillemotleft": "«", "guillemotright": "»", "quad": " ", "qquad": " ", "space": " ",
    "thinspace": " ", "nobreakspace": " ", "enspace": " ", "LaTeX": "LaTeX", "TeX": "TeX", "LaTeXe": "LaTeX2e",
    "BibTeX": "BibTeX", "slash": "/", "today": "", "lbrack": "[", "rbrack": "]",
}  # fmt: skip
ACCENTS = {
    "'": "\u0301", "`": "\u0300", "^": "\u0302", '"': "\u0308", "~": "\u0303", "=": "\u0304", ".": "\u0307",
    "c": "\u0327", "v": "\u030c", "u": "\u0306", "H": "\u030b", "r": "\u030a", "k": "\u0328", "d": "\u0323",
    "b": "\u0331",
}  # fmt: skip
HEADINGS = ("part", "chapter", "section", "subsection", "subsubsection", "paragraph", "subparagraph", "frametitle")
# Commands whose arguments are no text -> how many they have in braces.
SKIPPED = {
    "label": 1, "index": 1, "glossary": 1, "vspace": 1, "hspace": 1, "includegraphics": 1, "bibliography": 1,
    "bibliographystyle": 1, "addbibresource": 1, "usepackage": 1, "RequirePackage": 1, "documentclass": 1,
    "documentstyle": 1, "pagestyle": 1, "thispagestyle": 1, "pagenumbering": 1, "setlength": 2, "addtolength": 2,
    "setcounter": 2, "addtocounter": 2, "newcounter": 1, "newlength": 1, "input": 1, "include": 1, "includeonly": 1,
    "thanks": 1, "hypersetup": 1, "graphicspath": 1, "tikzset": 1, "usetikzlibrary": 1, "color": 1, "textcolor": 1,
    "colorbox": 1, "definecolor": 3, "fontsize": 2, "selectlanguage": 1, "phantom": 1, "hphantom": 1, "vphantom": 1,
    "rule": 2, "raisebox": 1, "resizebox": 2, "scalebox": 1, "rotatebox": 1, "parbox": 1, "multicolumn": 2,
    "multirow": 2, "cline": 1, "cmidrule": 1, "addcontentsline": 3, "markboth": 2, "markright": 1, "numberwithin": 2,
    "theoremstyle": 1, "nocite": 1, "hyphenation": 1, "renewenvironment": 3, "newenvironment": 3,
    "enlargethispage": 1, "geometry": 1, "lstset": 1, "lstinputlisting": 1, "inputminted": 2, "crefname": 3,
    "Crefname": 3, "captionsetup": 1, "fontfamily": 1, "fontseries": 1, "fontshape": 1, "setmainfont": 1,
    "newfontfamily": 1, "DeclareGraphicsExtensions": 1, "pdfinfo": 1, "author": 1, "date": 1, "title": 1,
    "affiliation": 1, "institute": 1, "email": 1, "address": 1, "todo": 1, "marginpar": 1, "bibitem": 1,
    "stepcounter": 1, "refstepcounter": 1, "newtheorem": 2, "href": 1, "hypertarget": 1, "hyperlink": 1,
    "bookmark": 1, "pdfbookmark": 2, "setstretch": 1, "linespread": 1, "citestyle": 1, "mathtoolsset": 1,
}  # fmt: skip
# Commands that name what is said elsewhere.
REFERENCES = (
    "cite", "citep", "citet", "citealp", "citealt", "citeauthor", "citeyear", "autocite", "parencite", "textcite",
    "footcite", "Citet", "Citep", "ref", "eqref", "autoref", "cref", "Cref", "pageref", "nameref", "vref",
)  # fmt: skip
MATHS = (
    "mathpar",
    "equation",
    "align",
    "gather",
    "multline",
    "eqnarray",
    "math",
    "displaymath",
    "flalign",
    "alignat",
    "dmath",
)
CODE = ("verbatim", "Verbatim", "lstlisting", "minted", "alltt", "verbatimtab", "code", "BVerbatim")
UNSEEN = ("comment", "tikzpicture", "pgfpicture", "picture", "asy", "thebibliography", "filecontents", "axis", "CD")
TABLES = ("tabular", "tabularx", "tabulary", "longtable", "array", "tabu", "supertabular", "xltabular", "NiceTabular")
LISTS = ("itemize", "enumerate", "description", "compactitem", "compactenum")
STATEMENTS = (
    "theorem", "lemma", "proposition", "corollary", "definition", "remark", "example", "conjecture", "claim", "proof",
    "exercise", "problem", "solution", "note", "fact", "question", "assumption", "axiom", "abstract",
)  # fmt: skip
# Environments whose first arguments in braces are no text -> how many.
ENVIRONMENT_ARGUMENTS = {
    **dict.fromkeys(TABLES, 1), "tabularx": 2, "tabulary": 2, "minipage": 1, "wrapfigure": 2, "wraptable": 2,
    "multicols": 1, "minted": 1, "adjustbox": 1, "spacing": 1, "list": 2, "column": 1, "subfigure": 1, "subtable": 1,
    "alignat": 1, "xltabular": 2,
}  # fmt: skip


def accented(letter: str, accent: str) -> str:
    """A letter with an accent."""
    return unicodedata.normalize("NFC", {"ı": "i", "ȷ": "j"}.get(letter, letter) + ACCENTS[accent]) if letter else ""
