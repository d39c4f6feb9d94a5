r"""LaTeX: prose without commands, formulas that can be read by themselves, code, tables; documents without an end."""

# ruff: noqa: RUF001, E501

from pathlib import Path

import pytest
from extraction import document, extract, skipped
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.reading.latex import parse_latex
from lifecycle.data.reading.raw import UnreadableError

PAPER = r"""
\documentclass[11pt]{article}
% \title{Not this one}
\newcommand{\R}{\mathbb{R}}
\newcommand{\norm}[2][2]{\lVert#2\rVert_{#1}}
\def\eps{\varepsilon}
\newcommand{\etal}{\emph{et al.}}
\DeclareMathOperator{\rank}{rank}
\newtheorem{thm}{Theorem}[section]
\title{On \emph{norms} \\ and more\thanks{Funded}}
\author{A. Person}
\begin{document}
\maketitle
\begin{abstract}
We show---with 5\% error--that ``norms'' matter. % a comment
\end{abstract}
\section*{Introduction}\label{sec:intro}
As Knuth~\cite[p.~3]{knuth84,lamport} said, see Section~\ref{sec:intro}, let $x \in \R^n$ and $\norm{x}
< \eps\norm[1]{y}$. It costs \$5, or $7 today.\footnote{A \textbf{bold} note.}
Caf\'e, na\"{\i}ve, Erd\H{o}s, \c{c}a, \O re, Stra\ss e.

Smith \etal\ disagree:
\begin{align*}
  a &= b \label{eq:1} \\  % comment
  \norm{a} &\le \rank \eps \nonumber
\end{align*}
\begin{thm}[Main \emph{result}]
Every $x$ is
\[ x = \R. \]
\end{thm}
\begin{proof} Trivial. \qed \end{proof}
\begin{itemize}
\item one
\item two
  \begin{enumerate}\item[(a)] sub a \item sub b\end{enumerate}
\end{itemize}
\begin{figure}[ht]\centering\includegraphics[width=3cm]{a.png}\caption{A \emph{figure}.}\label{f}\end{figure}
\begin{tabular}{l|c}
\hline a & b \\ \hline
c \& d & $e$ \\
\end{tabular}
\begin{verbatim}
x = { \y
  % kept
\end{verbatim}
\begin{tikzpicture}\draw (0,0) -- (1,1);\end{tikzpicture}\iffalse hidden \ifx a\fi too\fi
{\bf Bold} text \textcolor{red}{red} \verb|a_b| \url{http://a.b/c_d} \href{http://x.y}{link}.
\end{document}
Behind the end.
"""

TEXT = r"""Abstract. We show—with 5% error–that “norms” matter.

Introduction

As Knuth [knuth84,lamport] said, see Section [sec:intro], let $x \in \mathbb{R}^n$ and $\lVert x\rVert_{2} < \varepsilon\lVert y\rVert_{1}$. It costs $5, or $7 today. (A bold note.) Café, naïve, Erdős, ça, Øre, Straße.

Smith et al. disagree:

\begin{align*}
a &= b  \\
\lVert a\rVert_{2} &\le \operatorname{rank} \varepsilon
\end{align*}

Theorem (Main result). Every $x$ is

\[x = \mathbb{R}.\]

Proof. Trivial.

• one
• two

  (a) sub a
  2. sub b

A figure.

a	b
c & d	$e$

x = { \y
  % kept

Bold text red a_b http://a.b/c_d link.
"""


def test_a_paper(tmp_path: Path) -> None:
    found = document(extract(tmp_path / "a.tex", PAPER))
    assert (found.text, found.format, found.meta) == (TEXT, "latex", {"title": "On norms and more"})


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("A chapter of its own.\n\n\\section{Next}\nText.", "A chapter of its own.\n\nNext\n\nText.\n"),
        ("one % comment\n two", "one two\n"),
        ("a\\\\[2pt] b", "a\nb\n"),
        ("\\'{\\i} \\~n \\aa\\ \\v{s} \\.z", "í ñ å š ż\n"),
        ("$$a %x\n = \\frac{1}{2}$$ rest", "$$a\n= \\frac{1}{2}$$\n\nrest\n"),
        ("\\(x\\) and \\ensuremath{y}", "$x$ and $y$\n"),
        ("$5 and more\n\nand $x$", "$5 and more\n\nand $x$\n"),
        ("\\unknown[a]{kept} \\other text", "kept text\n"),
        ("\\begin{minted}[a]{python}\nx = 1\n\\end{minted}", "x = 1\n"),
        ("\\begin{foo}{arg} in\\end{bar} out", "arg in\n\nout\n"),
        ("\\def\\a#1#2{#2 #1}\\a{one}{two} ##", "two one ##\n"),
        ("\\item alone", "• alone\n"),
        ("}}} {{{ text", "text\n"),
        ("\\begin{equation}never ends", "never ends\n"),
    ],
)
def test_pieces(source: str, text: str) -> None:
    assert parse_latex(source)[0] == text


@pytest.mark.parametrize(
    "source",
    [
        "\\newcommand{\\x}{\\x}\\x",
        "\\newcommand{\\x}{\\x\\x}$\\x$",
        "\\def\\y#1{\\y{#1#1}}\\y{a}",
        "\\label{" * 1000,
        "\\footnote[" * 1000,
    ],
)
def test_documents_without_an_end(tmp_path: Path, source: str) -> None:
    assert skipped(extract(tmp_path / "a.tex", f"Text. {source}")).reason == "broken_markup"


PIECES = [
    *PAPER.split("\n"),
    "\\",
    "{",
    "}",
    "$",
    "$$",
    "\\[",
    "[",
    "]",
    "&",
    "\\begin",
    "\\end{itemize}",
    "\\item",
    "\\verb",
    "\\'",
    "%",
]


@given(st.lists(st.sampled_from(PIECES), max_size=30), st.sampled_from(["", " ", "\n"]))
def test_any_pieces_are_a_document(pieces: list[str], between: str) -> None:
    try:
        text, _ = parse_latex(between.join(pieces))
    except UnreadableError as error:
        assert error.reason == "broken_markup"
    else:
        assert text.endswith("\n")
