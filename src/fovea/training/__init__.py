"""Training: the loop, the update step, the run."""

from fovea.training.loop import resume, train
from fovea.training.problems import open_for_evaluation, open_tasks
from fovea.training.stopping import Stopped

__all__ = ["Stopped", "open_for_evaluation", "open_tasks", "resume", "train"]
