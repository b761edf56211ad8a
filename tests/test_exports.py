"""What the packages export: façades and their contents can't drift apart.

Every module of trio_subshells is either private (an underscore somewhere in its path) or public,
and a public one is a façade: it has an ``__all__`` that names everything it shows, and all of that
is documented. The packages are discovered, so a new one is held to the rules from its first day.
"""

from __future__ import annotations

import ast
import enum
import importlib
import inspect
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import pytest

import trio_subshells

ROOT = Path(trio_subshells.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))
# What an extra brings. None of it may be needed, or even imported, by the floors below.
EXTRAS = [
    *("IPython", "comm", "cyclopts", "ipykernel", "jupyter_client", "jupyter_core"),
    *("matplotlib_inline", "nbclient", "nbformat", "pytest", "rich", "tornado"),
]
FLOORS = ["actors", "sockets", "wire", "kernel"]
CORE = ["trio_subshells", *(f"trio_subshells.{floor}" for floor in FLOORS)]


def public_modules() -> Iterator[str]:
    """Yield the dotted name of each module without an underscore in its path; imports none."""
    for source in SOURCES:
        path = source.relative_to(ROOT.parent).with_suffix("")
        parts = path.parent.parts if path.name == "__init__" else path.parts
        if not any(part.startswith("_") for part in parts):
            yield ".".join(parts)


PUBLIC = list(public_modules())


def order(name: str) -> tuple[int, str]:
    """Constants, then classes, then functions: how ruff (RUF022) sorts an ``__all__``."""
    return (0 if name.isupper() else 1 if name[:1].isupper() else 2), name


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_what_it_is_for(source: Path) -> None:
    assert ast.get_docstring(ast.parse(source.read_text(encoding="utf-8")))


@pytest.mark.parametrize("module", PUBLIC)
def test_all_is_sorted_and_names_what_exists(module: str) -> None:
    facade = importlib.import_module(module)
    names = facade.__all__
    assert list(names) == sorted(set(names), key=order)
    assert [name for name in names if not hasattr(facade, name)] == []


@pytest.mark.parametrize("module", PUBLIC)
def test_nothing_public_is_missing_from_all(module: str) -> None:
    facade = importlib.import_module(module)
    shown = {
        name
        for name, value in vars(facade).items()
        if not name.startswith("_")
        and type(value).__module__ != "__future__"
        and not (isinstance(value, types.ModuleType) and value.__name__ == f"{module}.{name}")
    }
    assert shown - set(facade.__all__) == set(), "public names that __all__ doesn't have"


@pytest.mark.parametrize("module", PUBLIC)
def test_exports_are_ours_and_documented(module: str) -> None:
    facade = importlib.import_module(module)
    for name in facade.__all__:
        value = getattr(facade, name)
        if isinstance(value, types.ModuleType):
            assert value.__name__ == f"{module}.{name}"
        elif isinstance(value, type | types.FunctionType):  # others are documented by their module
            assert value.__module__.split(".")[0] == "trio_subshells", name
            # where it says it lives, it is found: by pickle, by Sphinx, by a curious reader
            home = importlib.import_module(value.__module__)
            assert getattr(home, value.__qualname__) is value, name
            assert vars(value).get("__doc__") if isinstance(value, type) else value.__doc__, name


@pytest.mark.parametrize("module", PUBLIC)
def test_the_members_of_exported_classes_are_documented(module: str) -> None:
    facade = importlib.import_module(module)
    classes = [cls for cls in map(vars(facade).get, facade.__all__) if isinstance(cls, type)]
    bare = [
        f"{cls.__name__}.{member}"
        for cls in classes
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and isinstance(value, types.FunctionType | property | classmethod | staticmethod)
        and not (issubclass(cls, enum.Enum) and member in cls.__members__)
        # an override may leave its contract to the class that declared it
        and not inspect.getdoc(getattr(cls, member))
    ]
    assert bare == []


@pytest.mark.parametrize("module", [name for name in CORE if name in PUBLIC])
def test_the_core_needs_no_extra(module: str) -> None:
    """A kernel author who installs the core alone gets imports that work, and start fast."""
    script = (
        f"import sys\nfor name in {EXTRAS}:\n    sys.modules[name] = None\n"
        f"import {module}\nassert {module!r} in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
