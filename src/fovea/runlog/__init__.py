"""The run folder: one place that decides how a run is written down, and reads it back.

    runs/quickstart-seed0/
      run.json             resolved recipe, command, versions, git state, host
      metrics.jsonl        a line a training step
      rollouts/step_000010.jsonl   the completions shown at that step
      pictures/*.png       one per shown problem, written once
      evaluations.jsonl    a line an evaluation
      bad_samples.jsonl    problems that could not be shown to the model; only if there were any
      checkpoints/         (written by training)
      report.html          (written by the viewer)
      result.json          before and after; its presence means the run finished

Everything is JSON that another program can read without fovea. Equal runs write equal `metrics.jsonl`,
keys that contain `seconds` or `memory` aside. This file decides *how* things are written, never *what*:
the set of metrics belongs to training, and the viewer shows those that are there.
"""

from fovea.runlog.describe import describe_run, git_state, reproduce_command, run_folder
from fovea.runlog.plain import jsonable, open_up, to_json, write_atomically, write_json
from fovea.runlog.reader import newest_model, read_run
from fovea.runlog.writer import BAD_SAMPLES, LOGS, LONGEST_SIDE, REWARD_JOURNAL, RunLog, check_run_folder

__all__ = [
    "BAD_SAMPLES",
    "LOGS",
    "LONGEST_SIDE",
    "REWARD_JOURNAL",
    "RunLog",
    "check_run_folder",
    "describe_run",
    "git_state",
    "jsonable",
    "newest_model",
    "open_up",
    "read_run",
    "reproduce_command",
    "run_folder",
    "to_json",
    "write_atomically",
    "write_json",
]
