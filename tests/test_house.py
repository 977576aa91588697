"""The house rules that a machine can check: the tree, import floors, light imports, sizes."""

from __future__ import annotations

import ast
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "fovea"
LIGHT = (
    "types",
    "config",
    "runlog",
    "rewards",
    "interventions",
    "statistics",
    "boxes",
    "outcomes",
    "audits",
    "rollout_health",
    "tasks",
    "environments",
    "viewer",
)
FUNCTION_LIMIT = 80
TRACKED_MEGABYTES = 20


def source_files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def listed_paths() -> list[str]:
    """First word of every line of the fenced block after the heading of docs/tree.md "## The tree"."""
    section = (ROOT / "docs" / "tree.md").read_text(encoding="utf-8").partition("\n## The tree\n")[2]
    block = re.search(r"^```\w*\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    assert block, 'docs/tree.md needs a fenced block after the heading "## The tree"'
    return [line.split()[0] for line in block[1].splitlines() if line.strip()]


def is_reexport(path: Path) -> bool:
    """An `__init__.py` of imports, a docstring and plain assignments (`__all__`) is no concept."""
    if path.name != "__init__.py":
        return False
    plain = (ast.Import, ast.ImportFrom, ast.Expr, ast.Assign, ast.AnnAssign)
    return all(isinstance(node, plain) for node in ast.parse(path.read_text(encoding="utf-8")).body)


def test_the_tree_agrees_with_the_files() -> None:
    listed = listed_paths()
    doubled = sorted({path for path in listed if listed.count(path) > 1})
    assert not doubled, f"the tree lists twice: {doubled}"
    missing = [path for path in listed if not (ROOT / path).exists()]
    assert not missing, f"the tree lists what does not exist: {missing}"
    here = {str(path.relative_to(ROOT)) for path in source_files() if not is_reexport(path)}
    unlisted = sorted(here - set(listed))
    assert not unlisted, f"the tree lacks a line for: {unlisted}"


def test_readme_has_the_command_that_continuous_integration_runs() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = re.findall(r"^python -m venv .*pytest *$", readme, re.MULTILINE)
    assert len(lines) == 1, (
        f".ci/run takes the one line `python -m venv … pytest` from README.md, found {lines}"
    )


def test_import_floors() -> None:
    beside = Path(sys.executable).parent / "lint-imports"
    command = str(beside) if beside.exists() else shutil.which("lint-imports")
    if command is None:
        pytest.skip("import-linter is not installed (extra [dev])")
    done = subprocess.run([command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_light_floors_do_not_import_torch() -> None:
    modules = [
        f"fovea.{name}" for name in LIGHT if list(PACKAGE.glob(f"{name}.py")) or (PACKAGE / name).is_dir()
    ]
    assert {"fovea.types", "fovea.config", "fovea.rewards", "fovea.statistics"} <= set(modules)
    heavy = "{'torch', 'torchvision', 'transformers'}"
    code = f"import sys, {', '.join(modules)}; print(*sorted({heavy} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "", f"importing {modules} also imports {done.stdout.strip()}"


def test_no_large_file_is_tracked() -> None:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode != 0:
        pytest.skip("not a git checkout")
    paths = [ROOT / name for name in done.stdout.split("\0") if name]
    large = [str(path) for path in paths if path.is_file() and path.stat().st_size > TRACKED_MEGABYTES * 1e6]
    assert not large, f"tracked files above {TRACKED_MEGABYTES} MB: {large}"


def test_functions_fit_on_a_screen() -> None:
    long = []
    for path in source_files():
        if path.name == "one_file_grpo.py":  # one page without functions is what it is for
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LIMIT:
                    long.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name} has {lines} lines")
    assert not long, long


def test_frozen_dataclasses_are_keyword_only_and_slotted() -> None:
    loose = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            for decorator in node.decorator_list if isinstance(node, ast.ClassDef) else []:
                text = ast.unparse(decorator)
                if "frozen=True" in text and not ("kw_only=True" in text and "slots=True" in text):
                    loose.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.name}: @{text}")
    assert not loose, loose


def test_text_is_never_evaluated() -> None:
    found = []
    for path in source_files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("eval", "exec")
            ):
                found.append(f"{path.relative_to(ROOT)}:{node.lineno} {node.func.id}")
    assert not found, found
