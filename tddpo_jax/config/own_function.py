"""Functions of a user's, named `path/to/file.py:function` or `package.module:function`.

Every error names the setting that holds the name, such as `loss.name`, and the name.
"""

from __future__ import annotations

import hashlib
import importlib.util
import inspect
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tddpo_jax.errors import UserError, one_line

# The names of the functions whose files are being run now.
_reading: list[str] = []


def function_name(name: str) -> str:
    """The name of the function: `my_dpo` of `mine.py:my_dpo`, and `dpo` of `dpo`."""
    return name.rpartition(":")[2]


def file_of(name: str, field: str) -> Path:
    """The file that a name stands for, which need not be there.

    Args:
        name: of the function.
        field: the setting that holds the name.

    Raises:
        UserError: there is no such module.
    """
    place = name.rpartition(":")[0]
    if place.endswith(".py"):
        return Path(place).expanduser().resolve()
    try:
        found = importlib.util.find_spec(place)
    except (ImportError, ValueError) as error:
        raise UserError(f"{field}: {name}: {one_line(error)}") from None
    if found is None or found.origin is None or not found.origin.endswith(".py"):
        raise UserError(f"{field}: {name}: there is no module {place}; a file's name ends with .py")
    return Path(found.origin)


def text_of(name: str, file: Path, field: str) -> str:
    """The text of a function's file.

    Raises:
        UserError: it cannot be read.
    """
    try:
        return file.read_text()
    except OSError as error:
        raise UserError(f"{field}: {name}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{field}: {name}: is not a text in UTF-8") from None


def function_of(name: str, file: str, text: str, field: str) -> Callable[..., Any]:
    """Runs a text as a module of its own, and takes the function from it.

    Args:
        name: of the function.
        file: the path that the module has.
        text: of the file.
        field: the setting that holds the name.

    Raises:
        UserError: the file fails, or has no such function.
    """
    wanted = function_name(name)
    found = vars(_module(name, file, text, field)).get(wanted)
    if found is None:
        raise UserError(f"{field}: {name}: the file has no function {wanted}")
    if not callable(found) or getattr(found, "__name__", None) != wanted:
        raise UserError(f"{field}: {name}: {wanted} is not a function of that name")
    return found


def name_of_function(function: Callable[..., Any], field: str) -> str:
    """`file.py:function` of a function at the top of a file.

    Raises:
        UserError: it is not, so that no later process could find it again.
    """
    whole = inspect.unwrap(function)
    name = getattr(whole, "__qualname__", repr(whole))
    code = getattr(whole, "__code__", None)
    file = Path(code.co_filename) if code else None
    if file is None or not file.is_file() or file.suffix != ".py" or not name.isidentifier():
        raise UserError(
            f"{field}: {name} is not a function at the top of a file; write it into one, such as "
            f"mine.py, and give 'mine.py:my_{field}'"
        )
    return f"{file.resolve()}:{name}"


def is_reading() -> bool:
    """Whether a function's file is being run now; a program in it must not train then."""
    return bool(_reading)


def _module(name: str, file: str, text: str, field: str) -> types.ModuleType:
    """The module that a text makes; it is fresh, so that an edited file has its new meaning."""
    place = name.rpartition(":")[0]
    digest = hashlib.sha256(f"{file}\n{text}".encode()).hexdigest()
    module = types.ModuleType(f"own_{digest[:16]}")
    module.__file__ = file
    module.__package__ = "" if place.endswith(".py") else place.rpartition(".")[0]
    # Decorators such as `dataclass` look their module up.
    sys.modules[module.__name__] = module
    folder = str(Path(file).parent)
    sys.path.insert(0, folder)  # as `python file.py` does
    _reading.append(name)
    try:
        exec(compile(text, file, "exec", dont_inherit=True), vars(module))
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise UserError(
            f"{field}: {name}: the file fails: {type(error).__name__}: {one_line(error)}"
        ) from None
    finally:
        _reading.pop()
        sys.path.remove(folder)
    return module
