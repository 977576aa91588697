"""What every self-supervised task gives away: blind and low-level solvers on held-out pictures. One table.

    fovea study ssl4rl/solvers images=FOLDER --n 4000 --jobs 1 --out runs/ssl4rl/solvers

Every generator at its hardened defaults, `--train` problems of the training pictures for fitting and `--n` of other
pictures for scoring; then the same for shortcuts planted on purpose (`_leaks.py`), which the solvers must find.
What is done is kept: run it again to go on. Features lie beside the results and are made once for all solvers.
"""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from fovea.recipes.ssl4rl._leaks import LEAKS
from fovea.runlog import write_json
from fovea.tasks.pool import Pool
from fovea.tasks.pool_sources import open_pool
from fovea.tasks.scenes import Split
from fovea.tasks.solver_features import gather, load, save
from fovea.tasks.solver_methods import need_sklearn
from fovea.tasks.solvers import WHICH, Which, score_tables
from fovea.tasks.ssl import LEVEL, SSL, open_ssl
from fovea.types import Task, UserError

BLIND, LOW = 0.03, 0.15
"""Above chance: most that the blind solver, and the low-level one, may reach."""
FOUND = 0.2
"""Above chance: what the solver of a planted leak must reach."""


def measure(
    name: str, opened: Callable[[Split], Task], which: Sequence[Which], counts: dict[Split, int], out: Path
) -> dict[str, Any]:
    """Scores of one task, from its file in `out` if it is there."""
    slug = name.replace("/", "-").replace(" ", "-").replace(",", "")
    path = out / f"{slug}.json"
    if path.is_file():
        found: dict[str, Any] = json.loads(path.read_text())
        if found["n"] == counts and set(which) <= set(found.get("scores", ())):
            return found
    try:
        tasks: dict[Split, Task] = {"train": opened("train"), "test": opened("test")}
        tables = []
        for split, task in tasks.items():
            features = out / f"{slug}-{split}-{counts[split]}.npz"
            if not features.is_file():
                save(features, gather(task, counts[split]))
            tables.append(load(features))
    except UserError as error:
        found = {"task": name, "n": counts, "skipped": str(error)}
        write_json(path, found)
        return found
    train, test = tables
    scores = {one: score_tables(train, test, one, tasks["test"]).record() for one in which}
    found = {"task": name, "n": counts, "kind": tasks["test"].kind, "scores": scores}
    write_json(path, found)
    print(json.dumps(found), flush=True)
    return found


def pool_of(images: str | None, side: int, depth: str | None, split: Split) -> Pool:
    return open_pool(images, split, side=side, depth=depth)


def _one(
    name: str, pools: Callable[[Split], Pool], level: float, counts: dict[Split, int], out: Path
) -> dict[str, Any]:
    """Of the table of tasks, or of the planted leaks. A pickled function for other processes."""
    if name in LEAKS:
        which, make = LEAKS[name]
        few: dict[Split, int] = {split: min(n, 1000) for split, n in counts.items()}
        return measure(f"planted {name}", functools.partial(make, pools), [which], few, out)

    def opened(split: Split) -> Task:
        return open_ssl(name, split, pool=pools(split), level=level)

    return measure(name, opened, WHICH, counts, out)


# --- the table --------------------------------------------------------------------------------------------


def table(results: Sequence[dict[str, Any]], planted: Sequence[dict[str, Any]]) -> str:
    """Markdown: accuracy of each solver with its 95 % interval; bold where it is above what is allowed."""
    lines = [
        "| task | answer | problems | chance | blind | low-level | coarse looking | beyond the limits |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for result in results:
        if "skipped" in result:
            lines.append(f"| {result['task']} | | | | | | | not measured: {result['skipped']} |")
            continue
        scores = result["scores"]
        chance = scores["blind"]["chance"]
        over = [
            f"{which} {100 * (scores[which]['accuracy'] - chance):+.0f} points"
            for which, limit in (("blind", BLIND), ("low_level", LOW))
            if scores[which]["accuracy"] - chance > limit
        ]
        cells = [_cell(scores[which]) for which in WHICH]
        lines.append(
            f"| {result['task']} | {result['kind']} | {scores['blind']['n']} | {chance:.3f} | "
            f"{' | '.join(cells)} | {', '.join(over) or '-'} |"
        )
    lines += ["", "| planted | solver | problems | chance | accuracy | found |", "|---|---|---|---|---|---|"]
    for result in planted:
        ((which, score),) = result["scores"].items()
        found = "yes" if score["accuracy"] - score["chance"] >= FOUND else "**no**"
        lines.append(
            f"| {result['task'].removeprefix('planted ')} | {which} | {score['n']} | {score['chance']:.3f} | "
            f"{_cell(score)} | {found} |"
        )
    return "\n".join(lines) + "\n"


def _cell(score: dict[str, Any]) -> str:
    low, high = score["ci95"]
    return f"{score['accuracy']:.3f} [{low:.3f}, {high:.3f}]"


def main(argv: list[str]) -> None:
    """Run the study, or finish it."""
    parser = argparse.ArgumentParser(prog="fovea study ssl4rl/solvers", description=__doc__)
    parser.add_argument("pictures", nargs="*", metavar="images=FOLDER", help="also depth=FOLDER")
    parser.add_argument("--n", type=int, default=4000, help="problems that are scored, of held-out pictures")
    parser.add_argument("--train", type=int, help="problems for fitting (as many, at most 2000)")
    parser.add_argument("--side", type=int, default=96, help="longest side of a picture in pixels")
    parser.add_argument("--level", type=float, default=LEVEL, help="difficulty, 0 to 1")
    parser.add_argument("--tasks", nargs="+", default=[*SSL, *LEAKS], help="names; planted leaks, too")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("runs/ssl4rl/solvers"))
    options = parser.parse_args(argv)
    given = dict(item.partition("=")[::2] for item in options.pictures)
    unknown = [key for key in given if key not in ("images", "depth")]
    if unknown or [name for name in options.tasks if name not in SSL and name not in LEAKS]:
        wrong = (unknown or [name for name in options.tasks if name not in SSL and name not in LEAKS])[0]
        raise UserError(f"{wrong!r} is neither images=, depth= nor a task of this study; see --help.")
    if options.n < 1 or (options.train or 24) < 24 or not 0 <= options.level <= 1 or options.side < 16:
        raise UserError("Give --n at least 1, --train at least 24, --level 0 to 1 and --side at least 16.")
    need_sklearn()
    counts: dict[Split, int] = {"train": options.train or min(options.n, 2000), "test": options.n}
    out = options.out
    pools = functools.cache(functools.partial(pool_of, given.get("images"), options.side, given.get("depth")))
    for split in counts:
        pools(split)  # pictures that cannot be used are named now, not once a task
    out.mkdir(parents=True, exist_ok=True)
    work = functools.partial(_one, pools=pools, level=options.level, counts=counts, out=out)
    if options.jobs > 1:
        plain = functools.partial(pool_of, given.get("images"), options.side, given.get("depth"))
        work = functools.partial(_one, pools=plain, level=options.level, counts=counts, out=out)
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as workers:
            found = list(workers.map(work, options.tasks))
    else:
        found = [work(name) for name in options.tasks]
    by_name = dict(zip(options.tasks, found))
    results = [by_name[name] for name in options.tasks if name in SSL]
    planted = [by_name[name] for name in options.tasks if name in LEAKS]
    command = "fovea study ssl4rl/solvers " + " ".join(argv)
    write_json(
        out / "results.json",
        {
            "command": command,
            "side": options.side,
            "level": options.level,
            "tasks": results,
            "planted": planted,
        },
    )
    text = table(results, planted)
    (out / "tables.md").write_text(text)
    print(text)
