"""`write_report(RUN)`: one self-contained HTML page that shows a run, finished or not.

Curves are inline SVG and pictures data URIs; the page has no script, makes no request and forbids both in its
content security policy. Everything that came from a model or a data set goes through jinja2's autoescape.
Not here: any measuring. The page shows what the run folder says.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from fovea.rewards.answers import box_from
from fovea.runlog import read_run, write_atomically
from fovea.types import UserError
from fovea.viewer import as_text, asked_of, visible
from fovea.viewer.charts import is_number
from fovea.viewer.curves import run_charts
from fovea.viewer.display import clock, interval, is_of_episodes
from fovea.viewer.pictures import Kind, Mark, data_uri, draw, picture_path, png_size
from fovea.viewer.strips import is_turn, pairs_of, strips_of
from fovea.viewer.watch import loss_note, warnings_of

WEB = Path(__file__).parent / "web"

SHOWN_PICTURES = 24
SHOWN_PROBLEMS = 6
SHOWN_EPISODES = 6
# Bytes of the pictures of all strips of a kind: fifty turns of photographs each would be a page of 100 MB.
EMBEDDED = 8_000_000
# A page of many photographs should still open: larger files are named instead of embedded.
LARGEST_PICTURE = 4_000_000

# Measures of an evaluation record: key, what it means.
MEASURES = (
    ("accuracy", "greedy replies that are right"),
    ("looking", "accuracy minus accuracy with another problem's picture"),
    ("swapped", "accuracy with another problem's picture, against the own truth"),
    ("follow", "replies to the swapped picture that are right about that picture"),
    ("blank", "accuracy with a blank picture"),
    ("truncated", "greedy replies cut at the length limit"),
)
# The same of episodes: key, label, what it means. The last two are no shares.
EPISODE_MEASURES = (
    ("accuracy", "success", "held-out episodes that succeed, greedy"),
    ("looking", "looking", "success minus success with another episode's pictures"),
    ("swapped", "swapped", "success with the pictures of another episode"),
    ("blank", "blank", "success with grey pictures"),
    ("thought_follows", "thought follows", "first thoughts that change when the picture is swapped"),
    ("invalid", "invalid", "replies without a legal action"),
    ("truncated", "cut off", "episodes that are over by too many turns"),
    ("return", "return", "sum of the environment's rewards of an episode"),
    ("turns", "turns", "length of an episode"),
)
NO_SHARES = ("return", "turns")


def write_report(run_folder: str | Path) -> Path:
    """Write `report.html` into the run folder and return its path.

    Raises UserError if the folder is not a run folder or holds broken JSON.
    """
    path = Path(run_folder) / "report.html"
    page = render_report(run_folder).encode("utf-8")
    try:
        write_atomically(path, page)
    except OSError as error:
        why = error.strerror or error
        raise UserError(f"{path} cannot be written ({why}); look at the run with `fovea view`.") from None
    return path


def render_report(run_folder: str | Path) -> str:
    """The page as a string; see `write_report`."""
    record = read_run(run_folder)
    described, result = record["run"], record["result"]
    run = described["run"] if isinstance(described.get("run"), dict) else described
    before, after = before_after(record["evaluations"])
    versions = {name: value for name, value in (described.get("versions") or {}).items() if value}
    return (
        templates()
        .get_template("report.html.j2")
        .render(
            title=title_of(run, record["folder"]),
            run=run,
            folder=str(run.get("run_dir") or record["folder"]),
            state=state_of(run, record["result"], len(record["metrics"])),
            warnings=warnings_of([*record["metrics"], *record["evaluations"]]),
            loss_note=loss_note(run, record["metrics"]),
            measures=measure_rows(before, after, result),
            basis=basis_of(before, result),
            before=before,
            after=after,
            charts=run_charts(run, record["metrics"], record["evaluations"]),
            comparisons=comparisons(record["folder"], before, after),
            replies=_replies(record["folder"], [one for one in record["shown"] if not is_turn(one)]),
            episodes=pairs_of(record["folder"], before, after, embedding(EMBEDDED)),
            trained=strips_of(record["folder"], record["shown"], embedding(EMBEDDED), SHOWN_EPISODES),
            shown_step=record["shown_step"],
            recipe=yaml.safe_dump(run, sort_keys=False, allow_unicode=True, width=100),
            versions=versions,
            git=described.get("git"),
            host=described.get("host") or {},
            command=described.get("command"),
            broken_lines=record["broken_lines"],
        )
    )


def embedding(most: int) -> Callable[[Path], str]:
    """→ (path) → its data URI, as long as all of them come to `most` bytes of files; then empty."""
    spent = 0

    def address(path: Path) -> str:
        nonlocal spent
        spent += path.stat().st_size
        return data_uri(path) if spent <= most else ""

    return address


def templates() -> Environment:
    """jinja2 over the folder `web`: everything is escaped, `|visible` also disarms invisible characters."""
    environment = Environment(
        loader=FileSystemLoader(WEB),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["visible"] = lambda value, limit=2000: visible(as_text(value), limit)
    return environment


def title_of(run: dict[str, Any], folder: Path) -> str:
    """The recipe's name and what is learned: `quickstart · digits/locate`."""
    return f"{Path(str(run.get('recipe') or folder.name)).stem} · {asked_of(run)}"


def state_of(run: dict[str, Any], result: dict[str, Any] | None, steps: int) -> str:
    """How far the run is, by its result (None while unfinished) and the number of logged steps."""
    if result is not None:
        spent = clock(result.get("train_seconds"))
        return f"finished: {result.get('steps', steps)} steps in {spent} of training"
    total = run.get("steps")
    return f"unfinished: {steps} of {total} steps" if total is not None else f"unfinished: {steps} steps"


def before_after(
    evaluations: Sequence[dict[str, Any]],
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """The first record and, once there is another, the last; a record's own phase goes before its place."""
    by_phase = {record.get("phase"): record for record in evaluations}
    before = by_phase.get("before") or (evaluations[0] if evaluations else None)
    after = by_phase.get("after") or (evaluations[-1] if len(evaluations) > 1 else None)
    return before, after


# Numbers before and after.


def measure_rows(
    before: dict[str, Any] | None, after: dict[str, Any] | None, result: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """Rows of the table before and after: label, meaning, both sides with intervals, and their figure."""
    rows: list[dict[str, Any]] = []
    records = {"before": measures_of(before or {}), "after": measures_of(after or {})}
    meanings = {label: meaning for record in records.values() for label, meaning, _ in record}
    first = "success" if is_of_episodes(result or before or {}) else "accuracy"
    if result and first == "accuracy":  # it is the contract; evaluations alone may be of another n on the way
        meanings.setdefault("accuracy", MEASURES[0][1])
    for label, meaning in meanings.items():
        sides = {
            side: next((v for name, _, v in record if name == label), None)
            for side, record in records.items()
        }
        if result and label == first:
            sides = {side: result.get(side) or sides[side] for side in sides}
        share = first == "accuracy" or label not in NO_SHARES
        summaries = {side: _summary(value, share) for side, value in sides.items()}
        if any(summaries.values()):
            rows.append({"label": label, "meaning": meaning, "share": share, **summaries})
    # One axis for all rows, so that they can be compared: from -100 % where a difference is below 0.
    means = [
        row[side][key]
        for row in rows
        for side in ("before", "after")
        if row[side] and row["share"]
        for key in ("mean", "low")
    ]
    left = -1.0 if any(value is not None and value < -0.02 for value in means) else 0.0
    return [
        row
        | {
            "left": left,
            "figure": _interval_figure(row["before"], row["after"], left) if row["share"] else "",
        }
        for row in rows
    ]


def basis_of(before: dict[str, Any] | None, result: dict[str, Any] | None) -> str:
    """On what the table stands, and between what its first row lies: a few words. Empty where nothing was measured."""
    record = {**(before or {}), **(result or {})}
    n, chance, ceiling = record.get("n"), record.get("chance"), record.get("ceiling")
    if not n:
        return ""
    episodes = is_of_episodes(record)
    what = "episodes, greedy" if episodes else "problems, greedy replies"
    parts = [f"on {n} held-out {what}, 95 % intervals"]
    if is_number(chance):
        who = "random legal actions" if episodes else "a guess that does not look"
        parts.append(f"{who}: {100 * chance:.1f} %")
    if is_number(ceiling) and episodes:
        parts.append(f"the best policy: {100 * ceiling:.1f} %")
    return "; ".join(parts)


# Of problems that are answered with boxes: section and key, label, meaning.
BOX_MEASURES = (
    ("boxes.iou", "mean IoU", "overlap of the box with the true one"),
    ("boxes.accuracy_75", "accuracy at .75", "boxes with IoU above 0.75"),
    ("boxes.looking.iou", "looking (IoU)", "mean IoU minus that with another problem's picture"),
    ("detection.f1", "F1", "labelled boxes, one to one at IoU 0.5, whatever their order"),
    ("detection.map", "mAP", "COCO's average precision over the set, IoU .50 to .95"),
    ("detection.ap50", "AP50", "the same at IoU .50"),
    ("detection.nms_ap", "NMS-AP", "OVDEval's: mAP after one box is left a true thing, whatever its label"),
    (
        "detection.greedy_precision",
        "greedy precision",
        "boxes that find a true thing, in the order of the reply",
    ),
    ("detection.greedy_recall", "greedy recall", "true things that are found by one"),
    ("detection.box_ratio", "box ratio", "boxes said / boxes true (100 % is as many)"),
    ("detection.false_alarms", "false alarms", "things asked for in vain that got a box"),
    ("detection.false_alarm_pictures", "alarm pictures", "pictures with a box of what is not there"),
    ("detection.looking.f1", "looking (F1)", "F1 minus that with another problem's picture"),
    ("detection.looking.map", "looking (mAP)", "mAP minus that with another problem's picture"),
)


def measures_of(record: dict[str, Any]) -> list[tuple[str, str, Any]]:
    """(label, meaning, {"mean", "ci95"}) of all that an evaluation record measured, accuracy first."""
    found: list[tuple[str, str, Any]] = (
        [(label, meaning, record[key]) for key, label, meaning in EPISODE_MEASURES if record.get(key)]
        if is_of_episodes(record)
        else [(key, meaning, record[key]) for key, meaning in MEASURES if record.get(key)]
    )
    without = (record.get("detection") or {}).get("without")
    for path, label, meaning in BOX_MEASURES:
        value: Any = record
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, dict):
            section, _, key = path.partition(".")
            missing = without and key.split(".")[-1] in ("map", "ap50", "nms_ap")
            where = record[section]["looking"] if "looking" in key else record[section]
            found.append((label, str(without) if missing else meaning, {"n": where.get("n")} | value))
    for name, value in (record.get("rewards") or {}).items():
        found.append((f"reward {name}", "mean reward of greedy replies", value))
    for k, value in (record.get("pass_at_k") or {}).items():
        found.append((f"pass@{k}", f"at least one of {k} sampled replies is right", value))
    return found


def measure_lines(record: dict[str, Any]) -> list[str]:
    """`measures_of` for a terminal: label, mean and interval, on how many where not on all, meaning."""
    found, lines = measures_of(record), []
    width = max([16, *(len(label) + 2 for label, _, _ in found)])
    for label, meaning, value in found:
        n = value.get("n")
        on = "" if n is None or n == record.get("n") else f" (n = {n})"
        lines.append(f"{label:<{width}}{interval(value):<26}{meaning}{on}")
    return lines


def _summary(value: Any, share: bool = True) -> dict[str, Any] | None:
    """`{"mean", "ci95"}`, a bare number, or None, as mean, low, high and its text: per cent where it is a share."""
    if isinstance(value, (int, float)):
        value = {"mean": value}
    if not isinstance(value, dict) or value.get("mean") is None:
        return None
    low, high = value.get("ci95") or (None, None)
    scale, places, unit = (100, 1, " %") if share else (1, 2, "")
    text = f"{scale * value['mean']:.{places}f}{unit}"
    span = (
        f"{scale * low:.{places}f} to {scale * high:.{places}f}"
        if low is not None and high is not None
        else ""
    )
    return {"mean": value["mean"], "low": low, "high": high, "text": text, "span": span}


def _interval_figure(before: dict[str, Any] | None, after: dict[str, Any] | None, left: float) -> Markup:
    """Two 95 % intervals under each other on the axis from `left` (0 or -1) to 1; 0 is marked."""

    def x(value: float) -> float:
        return round(6 + 228 * (min(1.0, max(left, value)) - left) / (1 - left), 1)

    ticks = [left + (1 - left) * i / 4 for i in range(5)]
    parts = [f'<line class="grid" x1="{x(t)}" x2="{x(t)}" y1="2" y2="34"/>' for t in ticks]
    if left < 0:
        parts.append(f'<line class="zero" x1="{x(0)}" x2="{x(0)}" y1="2" y2="34"/>')
    for side, name, y in ((before, "before", 11), (after, "after", 25)):
        if side is None:
            continue
        if side["low"] is not None and side["high"] is not None:
            parts.append(
                f'<line class="{name}" x1="{x(side["low"])}" x2="{x(side["high"])}" y1="{y}" y2="{y}"/>'
            )
        parts.append(f'<circle class="{name}" cx="{x(side["mean"])}" cy="{y}" r="4.5"/>')
    return Markup(f'<svg class="interval" viewBox="0 0 240 36" role="img">{"".join(parts)}</svg>')


# Pictures and replies.


def comparisons(
    folder: Path,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    address: Callable[[Path], str] = data_uri,
) -> list[dict[str, Any]]:
    """Held-out problems shown in the first record, each beside the same problem in the last one.

    `address`: how the page refers to a picture's file.
    """
    first = {str(item.get("id")): item for item in (before or {}).get("shown") or [] if not is_turn(item)}
    last = {str(item.get("id")): item for item in (after or {}).get("shown") or [] if not is_turn(item)}
    pairs = []
    for key in list(dict.fromkeys([*first, *last]))[:SHOWN_PICTURES]:
        item = first.get(key) or last[key]
        sides = [("before", first.get(key)), ("after", last.get(key))]
        pairs.append(
            {
                "question": item.get("question", ""),
                "truth": item.get("truth_text") or item.get("truth"),
                "sides": [
                    {"name": name, "figure": picture_svg(folder, side, address), **side}
                    for name, side in sides
                    if side
                ],
            }
        )
    return pairs


def picture_svg(
    folder: Path, item: dict[str, Any], address: Callable[[Path], str] = data_uri
) -> Markup | None:
    """The picture with its predicted and its true box (dashed); None if it is not in the run folder."""
    path = _first_picture(folder, item.get("picture"))
    if path is None:
        return None
    width, height = (float(v) for v in item.get("size") or png_size(path) or (1, 1))
    kinds: tuple[tuple[str, Kind], ...] = (("predicted_box", "predicted"), ("truth_box", "true"))
    boxes = [(box_from(item.get(key)), kind) for key, kind in kinds]
    marks = [Mark(box=box, kind=kind) for box, kind in boxes if box is not None]
    return draw(address(path), (width, height), marks)


def _first_picture(folder: Path, name: Any) -> Path | None:
    if isinstance(name, list):
        name = name[0] if name else None
    return picture_path(folder, name, LARGEST_PICTURE)


def _replies(folder: Path, shown: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The shown completions, those of one problem together under its picture."""
    problems: dict[str, dict[str, Any]] = {}
    for item in shown:
        key = str(item.get("id"))
        if key not in problems and len(problems) == SHOWN_PROBLEMS:
            break
        about = {"question": item.get("question", ""), "answer": item.get("answer"), "replies": []}
        if key not in problems:
            path = _first_picture(folder, item.get("pictures"))
            problems[key] = about | {"uri": data_uri(path) if path else None}
        problems[key]["changed"] = problems[key].get("changed") or changed_of(folder, item, data_uri)
        reply = {
            "text": item.get("text", ""),
            "reward": item.get("reward"),
            "parts": item.get("parts") or {},
            "variant": "" if item.get("variant") == "clean" else item.get("variant") or "",
        }
        problems[key]["replies"].append(reply)
    return list(problems.values())


def changed_of(folder: Path, record: dict[str, Any], address: Callable[[Path], str]) -> dict[str, Any] | None:
    """Pictures under which a completion was sampled instead of its problem's own: {"variant", "largest", "pairs"}, each
    pair the addresses of a picture and of what it differs in, enlarged. None where there are none in the run folder."""
    changed = record.get("changed")
    if not isinstance(changed, dict):
        return None
    shown, apart = changed.get("pictures"), changed.get("differences")
    names_of_pairs = zip(shown, apart) if isinstance(shown, list) and isinstance(apart, list) else ()
    pairs = [
        [address(path) if (path := picture_path(folder, name, LARGEST_PICTURE)) else None for name in names]
        for names in names_of_pairs
    ]
    found = {"variant": changed.get("variant", ""), "largest": changed.get("largest"), "pairs": pairs}
    return found if any(any(pair) for pair in pairs) else None
