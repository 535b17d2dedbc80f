"""Folders are the layers: a folder of the package imports only from those before it.

The order is written here, from the ground up. A test compares it with the package's README.
`eval/`, `run.py` and the tests stand above the package.
"""

import ast
import collections
import functools
import graphlib
import re
from pathlib import Path

import pytest
from places import ROOT

PACKAGE, EVAL = ROOT / "tddpo_jax", ROOT / "eval"
# What a folder may import: itself, and those before it. `ground` is modules at the package's top
# that everything may import, `top` those that may import everything.
GROUND, TOP = ("__init__", "errors"), ("__main__", "api", "call_arguments", "results")
LAYERS = (
    "batches",
    "losses",
    "config",
    "system",
    "data",
    "models",
    "runs",
    "placement",
    "weights",
    "scoring",
    "adapters",
    "generation",
    "training",
    "experiments",
    "planning",
    "commands",
    "embedded",
)
# What all of `eval/` shares comes first, from the ground up; then what measures, side by side.
EVAL_SHARED = ("uncertainty", "experiment", "tasks")
EVAL_LAYERS = ("harness", "mt_bench", "quality", "report", "speed", "studies")
# A report is read, computed, put into words, drawn and laid out, in this order.
REPORT_LAYERS = (
    *("number_formats", "read", "statistics", "analysis", "answer", "figures", "pages"),
    "__main__",
)
PURE = ("batches", "losses", "models")
# Names that several files have because they mean the same in each, the last three in each family.
SHARED_NAMES = ("__init__", "__main__", "attributes", "model", "tensors")
SOURCES = [
    ROOT / "run.py",
    *(file for folder in ("tddpo_jax", "eval", "tests") for file in (ROOT / folder).rglob("*.py")),
]


@functools.cache
def tree(file):
    return ast.parse(file.read_text())


def imports(file):
    """Dotted names of everything a file imports, at its top or inside its functions.

    In `eval/`, which is a package of its own or a part of ours, modules import each other
    relatively. Everywhere else imports are absolute.
    """
    folder = file.relative_to(ROOT).parts[:-1]
    for node in ast.walk(tree(file)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            relative = node.level > 0
            inside = folder[0] == "eval" and (relative or (node.module or "").startswith("eval"))
            assert relative == inside, f"{file}: line {node.lineno}"
            above = folder[: len(folder) + 1 - node.level] if relative else ()
            module = ".".join((*above, *filter(None, [node.module])))
            # What is imported from a package may be a module of it.
            yield from (f"{module}.{alias.name}" for alias in node.names)


def layers_imported(file, top):
    """The layers of the package `top` that a file imports from, and for each one name."""
    found = {}
    names = {path.stem for path in (ROOT / top).iterdir() if path.suffix == ".py"}
    names |= {path.name for path in (ROOT / top).iterdir() if path.is_dir()}
    for name in imports(file):
        first, *rest = name.split(".")
        if first == top:
            found[rest[0] if rest and rest[0] in names else "__init__"] = name
    return found


def height(layer):
    if layer in GROUND:
        return -1
    return LAYERS.index(layer) if layer in LAYERS else len(LAYERS)


def files_of(folder):
    return sorted(folder.rglob("*.py"))


def test_every_folder_and_module_has_its_place():
    folders = {file.relative_to(PACKAGE).parts[0] for file in files_of(PACKAGE)}
    modules = {name.removesuffix(".py") for name in folders if name.endswith(".py")}
    assert folders - {f"{name}.py" for name in modules} == set(LAYERS)
    assert modules == {*GROUND, *TOP}


def test_the_readme_lists_the_layers_in_order():
    rows = re.findall(r"^\| `(\w+)` \|", (PACKAGE / "README.md").read_text(), re.MULTILINE)
    assert tuple(rows) == LAYERS


@pytest.mark.parametrize("folder", LAYERS)
def test_imports_point_down(folder):
    for file in files_of(PACKAGE / folder):
        for other, name in layers_imported(file, "tddpo_jax").items():
            assert height(other) <= height(folder), f"{file}: {name}"


def test_the_ground_imports_nothing():
    """But for the names of `api`, which `__init__` tells to type checkers alone."""
    assert set(layers_imported(PACKAGE / "errors.py", "tddpo_jax")) <= set(GROUND)
    assert set(layers_imported(PACKAGE / "__init__.py", "tddpo_jax")) <= {*GROUND, "api"}


@pytest.mark.parametrize("top", ["tddpo_jax", "eval"])
def test_no_file_needs_itself(top):
    """Within a folder too, imports go one way."""
    modules = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts): file
        for file in files_of(ROOT / top)
    }
    graph = {
        module: {
            other if other in modules else other.rpartition(".")[0]
            for other in imports(file)
            if other.startswith(f"{top}.")
        }
        for module, file in modules.items()
    }
    graphlib.TopologicalSorter(graph).prepare()


def test_what_eval_shares_points_down():
    """A shared module of `eval/` imports those before it, and nothing that measures."""
    for number, name in enumerate(EVAL_SHARED):
        for file in _files_named(EVAL, name):
            allowed = {"__init__", *EVAL_SHARED[: number + 1]}
            assert set(layers_imported(file, "eval")) <= allowed, file


def test_folders_of_eval_need_no_other():
    """What measures one thing knows nothing of what measures another, except for its files."""
    allowed = {"report": {"mt_bench", "quality"}}
    modules = {path.stem for path in EVAL.iterdir() if path.name != "__pycache__"}
    # A study holds results and no program.
    assert modules - {"__init__", "README", "study"} == {*EVAL_SHARED, *EVAL_LAYERS}
    for folder in EVAL_LAYERS:
        for file in files_of(EVAL / folder):
            for other, name in layers_imported(file, "eval").items():
                beside = other in EVAL_LAYERS and other != folder
                assert not beside or other in allowed.get(folder, ()), f"{file}: {name}"


def test_a_report_goes_one_way():
    """Within `eval/report`, a folder or module imports only itself and those before it."""
    report = EVAL / "report"
    names = {path.stem for path in report.iterdir() if path.suffix == ".py" or path.is_dir()}
    assert names - {"__init__", "__pycache__"} == set(REPORT_LAYERS)
    for number, name in enumerate(REPORT_LAYERS):
        for file in _files_named(report, name):
            for imported in imports(file):
                if imported.startswith("eval.report."):
                    other = imported.split(".")[2]
                    assert other in REPORT_LAYERS[: number + 1], f"{file}: {imported}"


def _files_named(folder, name):
    """The module or the modules of the folder of this name."""
    return files_of(folder / name) if (folder / name).is_dir() else [folder / f"{name}.py"]


def test_the_package_needs_no_program():
    """run.py, eval/ and tests/ import the package, never the other way."""
    for file in files_of(PACKAGE):
        outside = {other.split(".")[0] for other in imports(file)}
        assert not outside & {"run", "eval", "tests"}, file


@pytest.mark.parametrize("folder", PURE)
def test_mathematics_knows_no_files_and_no_mesh(folder):
    forbidden = ("pathlib", "os", "json", "safetensors", "jax.sharding", "transformers")
    for file in files_of(PACKAGE / folder):
        for other in imports(file):
            assert not any(f"{other}.".startswith(f"{name}.") for name in forbidden), file


def test_a_file_name_has_one_meaning():
    """A reader who knows a file's name knows the file."""
    places = collections.defaultdict(list)
    for file in [*files_of(PACKAGE), *files_of(EVAL)]:
        if file.stem not in SHARED_NAMES:
            places[file.stem].append(str(file.relative_to(ROOT)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_tests_mirror_the_package():
    folders = {path.name for path in (ROOT / "tests").iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= {*LAYERS, "eval", "helpers"}
    assert {file.name for file in (ROOT / "tests").glob("*.py")} == {
        "conftest.py",
        Path(__file__).name,
        "test_api.py",
        "test_docstrings.py",
    }


def test_tests_mirror_eval():
    def folders(top):
        found = {str(path.relative_to(top)) for path in top.rglob("*") if path.is_dir()}
        return {name for name in found if "__pycache__" not in name}

    assert folders(ROOT / "tests" / "eval") <= folders(EVAL)


def test_eval_is_never_a_name():
    """`import eval` and `import eval.speed` bind a name that hides the builtin."""
    for file in SOURCES:
        for node in ast.walk(tree(file)):
            if not isinstance(node, (ast.Import, ast.ImportFrom)):
                continue
            for alias in node.names:
                bound = alias.asname or alias.name
                bound = bound.split(".")[0] if isinstance(node, ast.Import) else bound
                assert bound != "eval", f"{file}: line {node.lineno}"


def test_a_family_is_named_in_two_folders():
    """What knows a family's tensors or its config lies with the models or the adapters."""
    for file in files_of(PACKAGE):
        if file.relative_to(PACKAGE).parts[0] not in ("models", "adapters"):
            found = re.search("q_proj|self_attn|LlamaConfig", file.read_text())
            assert found is None, f"{file}: {found[0]}"
