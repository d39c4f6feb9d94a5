"""The language of source code, by name and by content; the licence that a file's head names."""

from pathlib import Path

import pytest
from extraction import document, extract, skipped

from lifecycle.data.reading.code_language import code_language, language_of_name
from lifecycle.data.reading.documents_of import spdx_license


@pytest.mark.parametrize(
    ("path", "text", "language"),
    [
        ("a.py", "x = 1\n", "python"),
        ("x.tar.gz#src/A.RS.gz", "fn main() {}\n", "rust"),
        ("Makefile", "all:\n\tcc a.c\n", "make"),
        ("src/CMakeLists.txt", "project(a)\n", "cmake"),
        ("a.h", "/* using it */\nstruct a { int virtual_address; };\n#include <stdio.h>\n", "c"),
        ("a.h", "#pragma once\nnamespace a {\nint f();\n}\n", "cpp"),
        ("a.h", "#include <vector>\nint f();\n", "cpp"),
        ("a.h", "#import <Foundation/Foundation.h>\n@interface A : NSObject\n@end\n", "objective-c"),
        ("a.m", "@implementation A\n@end\n", "objective-c"),
        ("a.m", "function y = f(x)\n  y = x;\nend\n", "matlab"),
        ("a.m", "(* A package. *)\nBeginPackage[\"A`\"]\n", "mathematica"),
        ("a.pl", "#!/usr/bin/perl\nuse strict;\nmy $x = 1;\n", "perl"),
        ("a.pl", "parent(X, Y) :- mother(X, Y).\n", "prolog"),
        ("a.v", "module a(input b); endmodule\n", "verilog"),
        ("a.v", "Theorem a : True.\nProof. auto. Qed.\n", "coq"),
        ("a.ts", "export const x: number = 1\n", "typescript"),
        ("a.ts", '<?xml version="1.0"?>\n<!DOCTYPE TS>\n', "qt-translation"),
        ("a.d", "import std.stdio;\nvoid main() {}\n", "d"),
        ("a.d", "a.o: a.c \\\n  a.h\n", "make"),
        ("run", "#!/usr/bin/env -S python3 -u\nprint()\n", "python"),
        ("run", "#! /bin/bash -e\ntrue\n", "shell"),
        ("run", "#!/usr/bin/env FOO=1 node\n", "javascript"),
        ("run", "#!/usr/bin/unknown\n", "code"),
    ],
)  # fmt: skip
def test_the_language_of_code(path: str, text: str, language: str) -> None:
    assert code_language(path, text) == language


def test_a_script_without_a_suffix_is_code(tmp_path: Path) -> None:
    assert document(extract(tmp_path / "run", "#!/usr/bin/env python3\nprint()\n")).format == "code"
    assert document(extract(tmp_path / "page", "<!DOCTYPE html><p>Text")).format == "html"
    assert (
        document(extract(tmp_path / "paper", "\\documentclass{article}\n\\begin{document}Text\\end{document}")).format
        == "latex"
    )
    assert skipped(extract(tmp_path / "notes", "Just text.\n")).reason == "unknown_format"
    assert language_of_name("notes") is None


@pytest.mark.parametrize(
    ("head", "license"),
    [
        ("// SPDX-License-Identifier: GPL-2.0-only\n", "GPL-2.0-only"),
        ("/* SPDX-License-Identifier: MIT */", "MIT"),
        ("<!-- SPDX-License-Identifier: (GPL-2.0+ WITH a) OR MIT -->", "(GPL-2.0+ WITH a) OR MIT"),
        ("# SPDX-License-Identifier:\tLicenseRef-Own.1 and more", "LicenseRef-Own.1"),
        ('"""SPDX-License-Identifier: Apache-2.0"""', "Apache-2.0"),
        ("SPDX-License-Identifier: <SPDX License Expression>", None),
        ("no licence", None),
        (" " * 5000 + "SPDX-License-Identifier: MIT", None),
    ],
)  # fmt: skip
def test_the_licence_in_a_head(tmp_path: Path, head: str, license: str | None) -> None:
    assert spdx_license(head) == license
    assert document(extract(tmp_path / "a.py", f"{head}\nx = 1\n", license="CC0-1.0")).license == (license or "CC0-1.0")
