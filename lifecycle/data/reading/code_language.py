"""The language of source code: by a file's name, and by its content where the name leaves several, or none.

A name is enough for most files. The tests of content are for suffixes that languages share, each a sign that the one
has in nearly every file and the other never; without a sign it is the more common one.
"""

import re
from functools import cache
from pathlib import PurePosixPath

from lifecycle.data.reading.streams import inner_name

LANGUAGE_OF_SUFFIX = {
    ".py": "python", ".pyi": "python", ".pyx": "cython", ".pxd": "cython", ".c": "c", ".h": "c", ".cc": "cpp",
    ".cpp": "cpp", ".cxx": "cpp", ".c++": "cpp", ".hh": "cpp", ".hpp": "cpp", ".hxx": "cpp", ".ipp": "cpp",
    ".cu": "cuda", ".cuh": "cuda", ".m": "objective-c", ".mm": "objective-c", ".rs": "rust", ".go": "go",
    ".java": "java", ".kt": "kotlin", ".kts": "kotlin", ".scala": "scala", ".groovy": "groovy", ".gradle": "groovy",
    ".clj": "clojure", ".js": "javascript", ".mjs": "javascript", ".cjs": "javascript", ".jsx": "javascript",
    ".ts": "typescript", ".tsx": "typescript", ".vue": "vue", ".svelte": "svelte", ".dart": "dart", ".rb": "ruby",
    ".pl": "perl", ".pm": "perl", ".php": "php", ".lua": "lua", ".tcl": "tcl", ".r": "r", ".jl": "julia",
    ".swift": "swift", ".cs": "csharp", ".fs": "fsharp", ".vb": "visual-basic", ".hs": "haskell", ".ml": "ocaml",
    ".mli": "ocaml", ".ex": "elixir", ".exs": "elixir", ".erl": "erlang", ".hrl": "erlang", ".elm": "elm",
    ".lisp": "lisp", ".el": "emacs-lisp", ".scm": "scheme", ".rkt": "racket", ".pro": "prolog", ".f": "fortran",
    ".f90": "fortran", ".f95": "fortran", ".pas": "pascal", ".adb": "ada", ".ads": "ada", ".cob": "cobol",
    ".asm": "assembly", ".s": "assembly", ".d": "d", ".nim": "nim", ".zig": "zig", ".v": "verilog", ".sv": "verilog",
    ".vhd": "vhdl", ".vhdl": "vhdl", ".sh": "shell", ".bash": "shell", ".zsh": "shell", ".fish": "shell",
    ".awk": "awk", ".ps1": "powershell", ".bat": "batch", ".vim": "vim", ".sql": "sql", ".css": "css",
    ".scss": "scss", ".sty": "tex", ".cls": "tex", ".proto": "protobuf", ".thrift": "thrift", ".cmake": "cmake",
    ".mk": "make", ".tf": "hcl", ".nix": "nix", ".bzl": "starlark", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml",
    ".glsl": "glsl", ".sol": "solidity", ".graphql": "graphql",
}  # fmt: skip
LANGUAGE_OF_NAME = {
    "makefile": "make", "gnumakefile": "make", "dockerfile": "dockerfile", "cmakelists.txt": "cmake",
    "rakefile": "ruby", "gemfile": "ruby", "sconstruct": "python", "build.bazel": "starlark", "jenkinsfile": "groovy",
}  # fmt: skip
LANGUAGE_OF_PROGRAM = {
    "python": "python", "sh": "shell", "bash": "shell", "dash": "shell", "ksh": "shell", "zsh": "shell",
    "fish": "shell", "perl": "perl", "ruby": "ruby", "node": "javascript", "nodejs": "javascript", "php": "php",
    "lua": "lua", "rscript": "r", "awk": "awk", "gawk": "awk", "mawk": "awk", "tclsh": "tcl", "wish": "tcl",
    "expect": "tcl", "make": "make", "julia": "julia", "guile": "scheme", "racket": "racket", "escript": "erlang",
    "elixir": "elixir", "runghc": "haskell", "runhaskell": "haskell", "groovy": "groovy", "scala": "scala",
    "swipl": "prolog", "ocaml": "ocaml", "deno": "typescript", "pwsh": "powershell",
}  # fmt: skip
HEAD = 16_384  # characters in which a sign is looked for
_PROGRAM = re.compile(r"#![ \t]*(?:\S*/)?(?:env[ \t]+(?:-\S+[ \t]+|\w+=\S+[ \t]+)*)?(?:\S*/)?([A-Za-z]+)")

# Suffix -> signs, the first that is found decides.
_SIGNS: dict[str, tuple[tuple[str, str], ...]] = {
    ".h": (
        ("objective-c", r"^\s*@(?:interface|protocol|class|end|property)\b|^\s*#\s*import\b"),
        ("cpp", r"^\s*(?:class\s+\w[\w:<>, ]*\s*(?:final\s*)?[:{]|(?:inline\s+)?namespace\s*[\w:]*\s*\{?\s*$|"
                r"template\s*<|using\s+(?:namespace|\w+\s*=)|(?:public|private|protected):|constexpr\s|virtual\s[^;]*\()|\bstd::|"
                r"^\s*#\s*include\s*<[a-z_]+>\s*$"),
    ),
    ".m": (
        ("objective-c", r"^\s*@(?:implementation|interface|protocol|import|end|class)\b|^\s*#\s*(?:import|include)\b"),
        ("mathematica", r"^\s*\(\*|^\s*(?:BeginPackage|Needs)\["),
        ("matlab", r"^\s*(?:%|function\b|end\b)"),
    ),
    ".pl": (("prolog", r"^(?::-\s*[a-z]|[a-z]\w*(?:\([^\n]*\))?\s*:-)"),),
    ".pro": (("qmake", r"^\s*(?:TEMPLATE|QT|SOURCES|HEADERS|CONFIG)\s*[+-]?="), ("prolog", r":-|\.\s*$")),
    ".v": (("coq", r"^\s*(?:Theorem|Lemma|Require|Definition|Proof|Inductive|Section)\b"),),
    ".ts": (("qt-translation", r"\A\s*(?:<\?xml|<!DOCTYPE TS)"),),
    ".d": (("make", r"\A(?:#[^\n]*\n|\s)*[^\s:]+\s*:\s*\S+"),),
    ".cls": (("visual-basic", r"\AVERSION"), ("apex", r"^\s*(?:public|global|private)\s[\w\s]*class\s+\w+")),
    ".fs": (("glsl", r"^\s*(?:#version|void\s+main\s*\(|uniform\b|varying\b)"), ("forth", r"^\s*:\s+\S+.*;\s*$")),
    ".s": (("r", r"<-\s*function\s*\("),),
    ".r": (("rebol", r"\A\s*REBOL\b"),),
    ".f": (("forth", r"^\s*:\s+\S+.*;\s*$"),),
    ".php": (("hack", r"\A\s*<\?hh"),),
}  # fmt: skip


def language_of_name(path: str) -> str | None:
    """The language that a file's name tells, also of one that is compressed; None if it tells none."""
    name = PurePosixPath(inner_name(path)[0])
    return LANGUAGE_OF_NAME.get(name.name.lower()) or LANGUAGE_OF_SUFFIX.get(name.suffix.lower())


def language_of_program(text: str) -> str | None:
    """The language of a script by the program that its first line names; None without such a line."""
    if not text.startswith("#!"):
        return None
    found = _PROGRAM.match(text.split("\n", 1)[0])
    return LANGUAGE_OF_PROGRAM.get(found[1].lower()) if found else None


def code_language(path: str, text: str) -> str:
    """The language of source code; `code` if neither name nor content tells."""
    head, suffix = text[:HEAD], PurePosixPath(inner_name(path)[0]).suffix.lower()
    for language, sign in _signs(suffix):
        if sign.search(head):
            return language
    by_name = language_of_name(path)
    return by_name or language_of_program(head) or "code"


@cache
def _signs(suffix: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    return tuple((language, re.compile(sign, re.MULTILINE)) for language, sign in _SIGNS.get(suffix, ()))
