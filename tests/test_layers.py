"""Imports only point down: the layers of the package, file by file."""

import ast
import graphlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "tddpo_jax"

# Every file of the package, once; a new one is given its layer here.
LAYERS = {
    "plain data": (
        "__init__",
        "cache",
        "config",
        "devices",
        "embedded_task",
        "json_files",
        "metrics",
        "xla_flags",
    ),
    "mathematics": (
        *("attention", "attention_kernels", "causal_rows", "flops", "layout", "logprobs", "losses"),
        *("model", "packing"),
    ),
    "placement and input": (
        *("checkpoint", "convert", "data", "encoding", "hosts", "hub", "lora", "model_files"),
        *("optimizer", "order", "pairs", "peft_files", "row_adapters", "rows", "sharding"),
        *("templates", "tensor_files"),
    ),
    "what is compiled": (
        *("ahead_of_time", "decode", "generate", "reference", "sampling", "train_step"),
    ),
    "loops and run directories": (
        *("cell_table", "claims", "console", "description", "evaluation", "grid"),
        *("grid_directory", "plan", "plan_memory", "plan_text", "plan_time", "preparation"),
        *("run_directory", "scoring", "submission", "trainer", "writers"),
    ),
    "programs": ("__main__", "command_line", "make_embedded"),
}
HEIGHT = {name: height for height, names in enumerate(LAYERS.values()) for name in names}
FILES = sorted(str(f.relative_to(PACKAGE).with_suffix("")) for f in PACKAGE.rglob("*.py"))
SOURCES = [
    ROOT / "run.py",
    *(file for folder in ("tddpo_jax", "eval", "tests") for file in (ROOT / folder).rglob("*.py")),
]


def imports(file):
    """Dotted names of everything a file imports, at its top or inside its functions."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: a relative import"
            # What is imported from a package may be a module of it.
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def own_imports(file):
    """The files of the package that a file imports."""
    for name in imports(file):
        parts = name.split(".")
        if parts[0] == "tddpo_jax":
            yield parts[1] if parts[1] in FILES else "__init__"


def test_every_file_has_one_layer():
    listed = [name for names in LAYERS.values() for name in names]
    assert len(listed) == len(set(listed))
    assert not set(FILES) - set(listed), "give the new file its layer in LAYERS"
    assert not set(listed) - set(FILES), "listed, but not there"


@pytest.mark.parametrize("name", HEIGHT)
def test_imports_point_down(name):
    """To the same layer or a lower one."""
    for other in own_imports(PACKAGE / f"{name}.py"):
        assert HEIGHT[other] <= HEIGHT[name], f"{name} imports {other}, which stands above it"


def test_no_file_needs_itself():
    """Within a layer too, imports go one way."""
    graph = {name: set(own_imports(PACKAGE / f"{name}.py")) for name in FILES}
    graphlib.TopologicalSorter(graph).prepare()


def test_the_package_needs_no_program():
    """run.py, eval/ and tests/ import the package, never the other way."""
    for name in FILES:
        outside = {other.split(".")[0] for other in imports(PACKAGE / f"{name}.py")}
        assert not outside & {"run", "eval", "tests"}, name


@pytest.mark.parametrize("name", LAYERS["mathematics"])
def test_mathematics_knows_no_files_and_no_mesh(name):
    forbidden = ("pathlib", "os", "json", "safetensors", "jax.sharding", "transformers")
    for other in imports(PACKAGE / f"{name}.py"):
        assert not any(f"{other}.".startswith(f"{module}.") for module in forbidden), other


def test_eval_is_never_a_name():
    """`import eval` and `import eval.speed` bind a name that hides the builtin."""
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for alias in node.names:
                bound = alias.asname or alias.name
                bound = bound.split(".")[0] if isinstance(node, ast.Import) else bound
                assert bound != "eval", f"{file}: line {node.lineno}"
