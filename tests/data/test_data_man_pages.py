r"""Man pages: text as `man` shows it, in both macro packages, whatever a page defines or leaves open."""

from pathlib import Path

import pytest
from extraction import document, extract, skipped
from hypothesis import given
from hypothesis import strategies as st

from lifecycle.data.reading.man_pages import parse_man
from lifecycle.data.reading.raw import UnreadableError

PAGE = r"""'\" t
.\" A comment.
.TH LS 1 "2024-01-01" "pkg 1.0"
.ie n .ds Aq \(aq
.el .ds Aq '
.de Vb
.nf
..
.de Ve
.fi
..
.SH NAME
ls \- list \fIdirectory\fR contents
.SH
"SEE THIS"
First line,
\fBsecond\fR line \(em \*(Aqquoted\*(Aq.
.PP
See
.BR stat (2)
and \c
.UR https://example.org/a
the site
.UE .
.TP
.B \-a
all of them
.TP
.BR \-\-long [= \fIx\fP]
a long one
.IP \(bu 2
a bullet
.RS
.PP
deeper
.RE
.Vb 1
\&.  kept   as
   it is
.Ve
.if t unseen
.TS
tab(;) allbox;
l l.
a;b
T{
long
.B cell
T};d
.TE
caf\('e \[u2014] 1\~000\e
"""

TEXT = """\
NAME

ls - list directory contents

"SEE THIS"

First line, second line — 'quoted'.

See stat(2) and the site <https://example.org/a>.

-a all of them

--long[=x]
    a long one

• a bullet

    deeper
.  kept   as
   it is

a\tb
long cell\td

café — 1 000\\
"""


def test_a_page_in_man(tmp_path: Path) -> None:
    found = document(extract(tmp_path / "ls.1", PAGE))
    assert (found.text, found.format, found.meta) == (TEXT, "man", {"title": "LS(1)"})


MDOC = r"""
.Dd January 1, 2024
.Dt SCP 1
.Os
.Sh NAME
.Nm scp
.Nd copy files
.Sh SYNOPSIS
.Nm
.Op Fl 346 | Ar x
.Oo Fl c Ar cipher Oc
.Ar
.Fd #include <a.h>
.In b.h
.Fn f "int a" b
.Fo g
.Fa "char *s"
.Fc
.Sh DESCRIPTION
.Nm
copies to
.Sm off
.Op Ar user No @
.Ar host
.Sm on ,
see
.Xr ssh 1 , Xr sftp 1 .
Written in
.Fx 14 Ns ,
.Bx 4.4
and
.St -p1003.1-2008 .
.Bl -tag -width x
.It Fl a , Fl Fl all
All of
.Dq them .
.It Fl L Xo
.Ar long
.Xc
Long.
.Bl -enum -compact
.It
One
.It
Two
.El
.El
.Bd -literal
x  =  1
.Ed
.Ex -std
"""

MDOC_TEXT = """\
NAME

scp — copy files

SYNOPSIS

scp [-346 | x] [-c cipher] file ...
#include <a.h>
#include <b.h>
f(int a, b)
g(char *s)

DESCRIPTION

scp copies to [user@]host, see ssh(1), sftp(1). Written in FreeBSD 14, 4.4BSD and IEEE Std 1003.1-2008 (“POSIX.1”).

-a, --all
    All of “them”.

-L long
    Long.
    1. One
    2. Two

x  =  1
The scp utility exits 0 on success, and >0 if an error occurs.
"""


def test_a_page_in_mdoc() -> None:
    assert parse_man(MDOC) == (MDOC_TEXT, {"title": "SCP(1)"})


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("Version 1 of the text.\n", "unknown_format"),
        (".so man3/printf.3\n", "no_text"),
        (".TH A 1\n.de X\n.X\n..\n.X\n", "broken_markup"),
        (".TH A 1\n.ds a \\*b\\*b\n.ds b \\*a\\*a\n\\*a\n", "broken_markup"),
        (".TH A 1\n.de X\n.X \\\\$1\\\\$1\n..\n.X long\n", "broken_markup"),
    ],
)
def test_what_is_no_page_or_has_no_end(tmp_path: Path, content: str, reason: str) -> None:
    assert skipped(extract(tmp_path / "a.1", content)).reason == reason


def test_a_line_of_conditions_is_not_read_once_for_each_of_them() -> None:
    parse_man(f".TH A 1\n.if n {'x' * 100_000}\n")
    with pytest.raises(UnreadableError, match="a macro or string that is in itself"):
        parse_man(f".TH A 1\n.if n {'x' * 100_001}\n")


LINES = [
    *PAGE.split("\n"),
    *MDOC.split("\n"),
    ".el \\{",
    "\\}",
    ".if n \\{",
    ".TE",
    "T{",
    ".El",
    ".Fc",
    ".RE",
    "\\",
    "\\(",
    "\\*",
    "'",
    ".",
    ".de",
    ".It Xo",
    "..",
]


@given(st.lists(st.sampled_from(LINES), max_size=30), st.booleans())
def test_any_lines_are_a_page(lines: list[str], is_mdoc: bool) -> None:
    try:
        text, _ = parse_man("\n".join([".Dd a" if is_mdoc else ".TH A 1", *lines]))
    except UnreadableError as error:
        assert error.reason in ("broken_markup", "no_text")
    else:
        assert (text.endswith("\n") and not text.startswith("\n")) or text == "\n"
