"""The examples in docstrings give what they show."""

import ast
import doctest
import importlib

import pytest
from places import ROOT

DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef)


def examples():
    """For every docstring with an example: its module, its line, and the docstring."""
    for top in ("tddpo_jax", "eval"):
        for file in sorted((ROOT / top).rglob("*.py")):
            module = ".".join(file.relative_to(ROOT).with_suffix("").parts)
            for node in ast.walk(ast.parse(file.read_text())):
                text = ast.get_docstring(node) if isinstance(node, DOCUMENTED) else None
                if text and ">>> " in text:
                    yield pytest.param(module, text, id=f"{module}.{getattr(node, 'name', '')}")


EXAMPLES = list(examples())
assert EXAMPLES


@pytest.mark.parametrize(("module", "text"), EXAMPLES)
def test_the_example_gives_what_it_shows(module, text):
    """Docstrings are read from the file, for doctest finds no function that jaxtyping wraps."""
    names = dict(vars(importlib.import_module(module)))
    test = doctest.DocTestParser().get_doctest(text, names, module, None, None)
    report: list[str] = []
    failed, tried = doctest.DocTestRunner().run(test, out=report.append)
    assert tried
    assert not failed, "".join(report)
