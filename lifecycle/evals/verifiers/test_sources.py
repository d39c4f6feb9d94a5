"""Sources of tests, read without running them."""

import ast

DEFINES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Import, ast.ImportFrom, ast.Assign, ast.AnnAssign)


def problem_of_test(source: str, entry_point: str) -> str:
    """Why a test says nothing of the code: it is no Python, or runs nothing; empty if it does."""
    try:
        statements = ast.parse(source).body
    except (SyntaxError, ValueError, RecursionError) as error:
        return f"a test is no Python: {error}"
    names = [statement.name for statement in statements if isinstance(statement, ast.FunctionDef)]
    runs = [one for one in statements if not isinstance(one, DEFINES) and not _is_text(one)]
    has_class = any(isinstance(statement, ast.ClassDef) for statement in statements)
    if runs or has_class or any(name.startswith("test") for name in names) or ("check" in names and entry_point):
        return ""
    return "a test runs nothing: expected asserts, functions test_*, unittest cases, or check() and an entry point"


def names_used(source: str) -> set[str]:
    """All names in a test, and the modules that it imports from."""
    nodes = list(ast.walk(ast.parse(source)))
    imported = {node.module or "" for node in nodes if isinstance(node, ast.ImportFrom)}
    return {node.id for node in nodes if isinstance(node, ast.Name)} | imported


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)
