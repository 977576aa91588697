"""Real graphs that are on every machine: imports among Python's modules, dependencies among installed packages.

Nothing is imported, executed or downloaded: sources are parsed (`ast`), metadata is read (`importlib.metadata`). Both
depend on the machine, so `Network.about` says on what. Not here: graphs of the user's (`sources.py`).

Try it: python -c "from fovea.tasks.graph_ssl.builtin import *; print(python_imports().about)"
"""

from __future__ import annotations

import ast
import functools
import importlib.metadata
import platform
import re
import sys
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from fovea.tasks.graph_ssl.network import Network, network

_SKIPPED = frozenset(
    {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__", "turtledemo"}
)
CLASS_SIZE = 10
"""Modules that a top-level package must have to be a class of its own."""


# --- imports among the standard library's modules -----------------------------------------------------------------


@functools.cache
def python_imports() -> Network:
    """Modules of the standard library; an edge joins two of which one imports the other, anywhere in its source.

    Attributes and class: `imports_of`.
    """
    about = f"imports among the modules of {platform.python_implementation()} {platform.python_version()}"
    edges, attributes = imports_of(Path(sysconfig.get_paths()["stdlib"]), sys.stdlib_module_names)
    return network("python-imports", about, edges, attributes, attribute="defines", label="package")


def imports_of(root: Path, also: Collection[str]) -> tuple[set[tuple[str, str]], dict[str, dict[str, str]]]:
    """(edges, attributes) of the modules in a folder, and of those named in `also`, which may have no source.

    Attributes of a module: `defines` (functions, classes, both or neither at its top level), `kind` (package, module,
    private or C: without a Python source), `size` (how many functions and classes it defines) and `package`, its
    top-level package where that has `CLASS_SIZE` modules.
    """
    files = dict(_modules(root))
    known = frozenset(files) | {name for name in also if name not in _SKIPPED}
    edges: set[tuple[str, str]] = set()
    size: dict[str, str] = {}
    defines: dict[str, str] = {}
    for name in sorted(files):
        tree = _parsed(files[name])
        if tree is None:
            continue
        statements = list(_statements(tree))
        size[name] = _size(sum(isinstance(one, _DEFINED) for one in statements))
        defines[name] = _defines(tree)
        package = name if files[name].name == "__init__.py" else name.rpartition(".")[0]
        edges |= {(name, other) for other in _imported(statements, package, known) if other != name}
    inside = Counter(name.partition(".")[0] for name in known if "." in name)
    attributes = {
        "kind": {name: _kind(name, files) for name in known},
        "size": size,
        "defines": defines,
        "package": {name: top for name in known if inside[top := name.partition(".")[0]] + 1 >= CLASS_SIZE},
    }
    return edges, attributes


_DEFINED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)


def _modules(root: Path) -> Iterator[tuple[str, Path]]:
    """(dotted name, file) of every source in a folder; tests and demonstrations are left out."""
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        if not _SKIPPED & set(parts) and all(part.isidentifier() for part in parts):
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _parsed(path: Path) -> ast.Module | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in somebody else's strings
            return ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, OSError):  # templates and sources of Python 2 are among them
        return None


def _statements(tree: ast.AST) -> Iterator[ast.AST]:
    """Every statement of a source, however deep; expressions hold none, and most of a tree is expressions."""
    waiting: list[ast.AST] = [tree]
    while waiting:
        node = waiting.pop()
        yield node
        for key in ("body", "orelse", "finalbody", "handlers", "cases"):
            waiting += getattr(node, key, ())


def _imported(statements: Iterable[ast.AST], package: str, known: frozenset[str]) -> Iterator[str]:
    """Known modules that a source imports; `from a import b` means a.b where that is a module."""
    for node in statements:
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names if name.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for name in node.names:
                full = f"{origin}.{name.name}"
                if full in known:
                    yield full
                elif origin in known:
                    yield origin


def _size(definitions: int) -> str:
    """How many functions and classes, in words."""
    return (
        "none" if not definitions else "few" if definitions < 10 else "some" if definitions < 40 else "many"
    )


def _defines(tree: ast.Module) -> str:
    """What stands at the top level of a module: functions, classes, both or neither."""
    functions = any(isinstance(one, ast.FunctionDef | ast.AsyncFunctionDef) for one in tree.body)
    classes = any(isinstance(one, ast.ClassDef) for one in tree.body)
    return ("both" if classes else "functions") if functions else "classes" if classes else "neither"


def _kind(name: str, files: Mapping[str, Path]) -> str:
    if name not in files:
        return "C"
    if files[name].name == "__init__.py":
        return "package"
    return "private" if name.rpartition(".")[2].startswith("_") else "module"


# --- dependencies among installed packages --------------------------------------------------------------------------


@functools.cache
def packages() -> Network:
    """Installed distributions; an edge joins two of which one requires the other, be it for an extra.

    Attributes of a distribution: `builder` (the tool that wrote its wheel) and `kind`, pure or compiled: the class.
    """
    found: dict[str, importlib.metadata.Distribution] = {}
    for one in importlib.metadata.distributions():
        name = _canonical(one.metadata["Name"] or "")
        if name:
            found.setdefault(name, one)
    edges, builder, kind = set(), {}, {}
    for name, one in sorted(found.items()):
        required = (re.match(r"[A-Za-z0-9._-]+", line.strip()) for line in one.requires or ())
        edges |= {(name, other) for match in required if match and (other := _canonical(match[0])) in found}
        wheel = one.read_text("WHEEL") or ""
        if match := re.search(r"^Generator:\s*([A-Za-z_.-]+)", wheel, re.MULTILINE):
            builder[name] = match[1].lower()
        if match := re.search(r"^Root-Is-Purelib:\s*(\w+)", wheel, re.MULTILINE):
            kind[name] = "pure" if match[1].lower() == "true" else "compiled"
    edges = {(a, b) for a, b in edges if a != b}
    about = f"requirements among the {len(found)} distributions installed beside Python {platform.python_version()}"
    attributes = {"builder": builder, "kind": kind}
    return network("packages", about, edges, attributes, attribute="builder", label="kind")


def _canonical(name: str) -> str:
    """A distribution's name as PEP 503 writes it."""
    return re.sub(r"[-_.]+", "-", name).lower()


# --- networkx's classics ----------------------------------------------------------------------------------------------


def _classic(name: str, maker: str, label: str | None, about: str) -> Network:
    import networkx

    from fovea.tasks.graph_ssl.sources import from_networkx

    made: Any = getattr(networkx, maker)()
    return from_networkx(made, name=name, about=about, label=label)


BUILTIN: Mapping[str, Callable[[], Network]] = {
    "python-imports": python_imports,
    "packages": packages,
    "karate": lambda: _classic(
        "karate", "karate_club_graph", "club", "friendships in a karate club (Zachary 1977)"
    ),
    "les-miserables": lambda: _classic(
        "les-miserables", "les_miserables_graph", None, "who appears with whom in Les Misérables (Knuth 1993)"
    ),
    "florentine": lambda: _classic(
        "florentine",
        "florentine_families_graph",
        None,
        "marriages of Florentine families (Breiger, Pattison 1986)",
    ),
}
"""Name → graph. The classics are for the docs: too small to measure on."""
