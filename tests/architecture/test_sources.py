"""Habits that a reader of the sources may rely on."""

import ast

from tests.architecture.sources import PRODUCT, ROOT, Function, files, functions, tree

MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 70


def is_test(function: Function) -> bool:
    return function.name.startswith("test_")


def test_sources_modules_are_short() -> None:
    """A module over 500 lines is two things in one room."""
    lengths = {path: len((ROOT / path).read_text().splitlines()) for path in files(*PRODUCT, "tests")}
    assert {} == {str(path): length for path, length in lengths.items() if length > MAX_MODULE_LINES}


def test_sources_functions_are_short() -> None:
    """A function over 70 lines does two things."""
    long = [
        f"{path}:{function.lineno} {function.name}"
        for path in files(*PRODUCT, "tests")
        for function in functions(path)
        if (function.end_lineno or 0) - function.lineno + 1 > MAX_FUNCTION_LINES
    ]
    assert [] == long


def test_sources_modules_say_what_they_are() -> None:
    """The first line of a module says its one idea."""
    silent = [str(path) for path in files(*PRODUCT, "tests") if not ast.get_docstring(tree(path))]
    assert [] == silent


def test_sources_tests_carry_one_sentence() -> None:
    """Each test says in one sentence what it proves."""
    silent = []
    for path in files("tests"):
        for function in filter(is_test, functions(path)):
            sentence = ast.get_docstring(function) or ""
            if not sentence.endswith(".") or "\n\n" in sentence:
                silent.append(f"{path}:{function.lineno} {function.name}")
    assert [] == silent


def test_sources_no_module_imports_its_own_root() -> None:
    """Inside the package, modules are imported by name; the root is a shop window for users."""
    found = []
    for path in files("app"):
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.Import) and any(alias.name == "app" for alias in node.names):
                found.append(f"{path}:{node.lineno}")
            if isinstance(node, ast.ImportFrom) and (node.module == "app" or node.level > 0):
                found.append(f"{path}:{node.lineno}")
    assert [] == found
