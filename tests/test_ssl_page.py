"""The tables of docs/ssl4rl.md are those of the code, and of the studies' results.json.

`FOVEA_WRITE_DOCS=1 pytest tests/test_ssl_page.py` writes them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fovea.recipes.ssl4rl import solvers, study
from fovea.tasks.graph_ssl import GRAPH_TASKS
from fovea.tasks.ssl import SSL
from fovea.tasks.ssl.spec import Generator, options_of

PAGE = Path(__file__).parent.parent / "docs" / "ssl4rl.md"
RESULTS: dict[str, Any] = json.loads(
    Path(study.__file__).with_name("results.json").read_text(encoding="utf-8")
)


def chances(generator: Generator) -> str:
    """At difficulty 0, 0.5 and 1."""
    return " / ".join(f"{generator.chance(level):.3g}" for level in (0.0, 0.5, 1.0))


def table() -> str:
    lines = [
        "| task | asks | answer | chance at 0 / 0.5 / 1 | rewards | options |",
        "|---|---|---|---|---|---|",
    ]
    for name, generator in (*SSL.items(), *GRAPH_TASKS.items()):
        rewards = ", ".join(f"`{reward}` {weight:g}" for reward, weight in generator.rewards.items())
        options = ", ".join(f"`{option}` {default}" for option, default in options_of(generator).items())
        cells = (
            f"`{name}`",
            generator.about,
            generator.answer,
            chances(generator),
            rewards,
            options or "none",
        )
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "What could give the answer away, and what closes it:", ""]
    lines += [
        f"- `{name}`: {generator.shortcuts}." for name, generator in (*SSL.items(), *GRAPH_TASKS.items())
    ]
    return "\n".join(lines)


def solver_table() -> str:
    found = RESULTS["studies"]["solvers"]
    return solvers.table(found["tasks"], found["planted"]).strip()


def study_tables() -> str:
    arms = {
        name.removeprefix("study/"): arm for name, arm in RESULTS["arms"].items() if name.startswith("study/")
    }
    return study.tables(RESULTS["studies"]["study"] | {"arms": arms}).strip()


TABLES: dict[str, Callable[[], str]] = {
    "tasks": table,
    "solvers": solver_table,
    "study": study_tables,
}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_the_page_is_that_of_the_code(name: str) -> None:
    begin, end = f"<!-- {name}: written by tests/test_ssl_page.py -->", f"<!-- end of {name} -->"
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(begin)
    _, found, after = rest.partition(end)
    assert found, f"{PAGE.name} must hold {begin} and {end}"
    wanted = f"{before}{begin}\n\n{TABLES[name]()}\n\n{end}{after}"
    if os.environ.get("FOVEA_WRITE_DOCS"):
        PAGE.write_text(wanted, encoding="utf-8")
    assert text == wanted or os.environ.get("FOVEA_WRITE_DOCS"), (
        "run FOVEA_WRITE_DOCS=1 pytest tests/test_ssl_page.py"
    )
