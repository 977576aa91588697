"""The table of self-supervised tasks in docs/ssl4rl.md is that of the code.

`FOVEA_WRITE_DOCS=1 pytest tests/test_ssl_page.py` writes it.
"""

from __future__ import annotations

import os
from pathlib import Path

from fovea.tasks.graph_ssl import GRAPH_TASKS
from fovea.tasks.ssl import SSL
from fovea.tasks.ssl.spec import Generator, options_of

PAGE = Path(__file__).parent.parent / "docs" / "ssl4rl.md"
BEGIN, END = "<!-- tasks: written by tests/test_ssl_page.py -->", "<!-- end of tasks -->"


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


def test_the_table_of_tasks_is_that_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    assert end, f"{PAGE.name} must hold {BEGIN} and {END}"
    wanted = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
    if os.environ.get("FOVEA_WRITE_DOCS"):
        PAGE.write_text(wanted, encoding="utf-8")
    assert text == wanted or os.environ.get("FOVEA_WRITE_DOCS"), (
        "run FOVEA_WRITE_DOCS=1 pytest tests/test_ssl_page.py"
    )
