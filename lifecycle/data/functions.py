"""Functions and classes of Python documents, with their signature and the first sentence of their docstring.

Source is parsed with `ast`, never run. What must hold: each selected function has one clear description that no
other has, and the description shares a word with the name or the parameters. So the question alone can tell a reader
which answer is right, without having seen the function; this makes held-out functions a fair test.

Words are compared by stem: split at `_`, at case changes and at non-letters, lowercased, without common words, cut to
the first four letters. The identity of a description is its lowercase letters and digits.
"""

import ast
import hashlib
import inspect
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

STEM = 4  # letters: "encode", "encoding" and "encoder" are one word, "path" and "part" are two
SENTENCE_CHARS = (15, 160)  # shorter ones say nothing, longer ones would be cut by a short context
SIGNATURE_CHARS = 80
COMMON = """
a an and any are as at be been but by can do does for from get given had has have if in into is it its may method
new none not object of on one or other out return returns self set should so that the their them then there this
to true false two used value values was when where which will with you function class module
"""
COMMON_WORDS = frozenset(COMMON.split())
SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=[A-Z`'\"(])")
WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")


@dataclass(frozen=True)
class Function:
    """A function, method or class that a docstring describes."""

    module: str
    name: str  # within the module: `JSONDecoder.decode`
    parameters: tuple[str, ...] | None  # as written in a call, without defaults; None for a class without `__init__`
    description: str  # the first sentence of the docstring

    @property
    def qualified_name(self) -> str:
        """`module.name`."""
        return f"{self.module}.{self.name}"

    @property
    def signature(self) -> str:
        """The qualified name, with its parameters if they are known."""
        if self.parameters is None:
            return self.qualified_name
        return f"{self.qualified_name}({', '.join(self.parameters)})"

    @cached_property
    def identity(self) -> str:
        """The description's lowercase letters and digits; if equal, two functions share their documentation."""
        return "".join(re.findall(r"[a-z0-9]+", self.description.lower()))

    @cached_property
    def signature_stems(self) -> frozenset[str]:
        """The word stems of the signature."""
        return stems(self.signature)

    @cached_property
    def description_stems(self) -> frozenset[str]:
        """The word stems of the description."""
        return stems(self.description)


def stems(text: str) -> frozenset[str]:
    """Stems of the words in `text` that are not common and have at least three letters."""
    words = (word.lower() for word in WORD.findall(text))
    return frozenset(word[:STEM] for word in words if len(word) > 2 and word not in COMMON_WORDS)


def described_functions(documents: Iterable[tuple[str, str]], reasons: Counter[str]) -> list[Function]:
    """The usable functions of (path, text) documents, ordered by a hash of their signature.

    `reasons` counts the functions and documents left out, by reason. Of functions with the same name or description,
    the first in that order stays.
    """
    candidates = [function for path, text in documents for function in _in_document(path, text, reasons)]
    reasons["docstrings"] += len(candidates)
    kept: dict[str, Function] = {}
    names: set[str] = set()
    for function in sorted(candidates, key=_order):
        reason = _unusable(function)
        if reason is None and (function.identity in kept or function.qualified_name in names):
            reason = "same name or description as another"
        if reason is None:
            kept[function.identity] = function
            names.add(function.qualified_name)
        else:
            reasons[reason] += 1
    return list(kept.values())


def _order(function: Function) -> tuple[str, str]:
    return hashlib.sha256(function.signature.encode()).hexdigest(), function.description


def _unusable(function: Function) -> str | None:
    if any(part.startswith("__") for part in function.qualified_name.split(".")):
        return "special name"
    low, high = SENTENCE_CHARS
    if not low <= len(function.description) <= high:
        return "sentence too short or too long"
    if function.description.partition("(")[0] == function.name.rpartition(".")[2] or ">>>" in function.description:
        return "docstring begins with a call"
    if len(function.signature) > SIGNATURE_CHARS:
        return "signature too long"
    if not function.signature_stems & function.description_stems:
        return "no word shared with the signature"
    return None


def _in_document(path: str, text: str, reasons: Counter[str]) -> Iterator[Function]:
    if not path.endswith(".py"):
        return
    module = module_name(path)
    if module is None:
        reasons["documents whose path names no module"] += 1
        return
    try:
        with warnings.catch_warnings(action="ignore", category=SyntaxWarning):
            tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # Python 2, null bytes, too deep nesting
        reasons["documents that do not parse"] += 1
        return
    yield from _in_body(module, "", tree.body)


def module_name(path: str) -> str | None:
    """`json/decoder.py` -> `json.decoder`, `json/__init__.py` -> `json`; None if the path names no module."""
    parts = path.removesuffix(".py").split("/")
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts) if parts and all(part.isidentifier() for part in parts) else None


def _in_body(module: str, prefix: str, body: list[ast.stmt]) -> Iterator[Function]:
    for node in body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        docstring = ast.get_docstring(node, clean=False)
        if docstring and (sentence := first_sentence(docstring)):
            yield Function(module, prefix + node.name, _parameters(node, is_method=bool(prefix)), sentence)
        if isinstance(node, ast.ClassDef):
            yield from _in_body(module, f"{prefix}{node.name}.", node.body)


def first_sentence(docstring: str) -> str:
    """The first sentence of the first paragraph, on one line, ending with a full stop."""
    paragraph = " ".join(inspect.cleandoc(docstring).partition("\n\n")[0].split())
    sentence = SENTENCE_END.split(paragraph, maxsplit=1)[0].strip()
    return sentence if sentence.endswith((".", "!", "?")) or not sentence else sentence.rstrip(":;,") + "."


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef, is_method: bool) -> tuple[str, ...] | None:
    if isinstance(node, ast.ClassDef):
        init = next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        return None if init is None else _parameters(init, is_method=True)
    args = node.args
    names = [arg.arg for arg in (*args.posonlyargs, *args.args)]
    is_static = any(isinstance(d, ast.Name) and d.id == "staticmethod" for d in node.decorator_list)
    names = names[1:] if is_method and not is_static else names
    starred = [f"*{args.vararg.arg}"] if args.vararg else []
    keywords = [arg.arg for arg in args.kwonlyargs]
    return (*names, *starred, *keywords, *([f"**{args.kwarg.arg}"] if args.kwarg else []))
