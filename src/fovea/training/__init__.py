"""Training: the loop, the update step, the run."""

from fovea.training.loop import train
from fovea.training.setup import open_for_evaluation, open_tasks

__all__ = ["open_for_evaluation", "open_tasks", "train"]
