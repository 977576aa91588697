"""A recipe is a small YAML file; a `Run` is its resolved, validated, frozen form.

`load_run("quickstart", ["steps=10", "rewards.iou=2"])` reads a built-in or a user's recipe, applies dotted
overrides and validates. Unknown keys are refused with the nearest name. Nothing here knows what a task or a
model is: names are checked where they are looked up.
"""

from fovea.config.episodes import CriticSection, EnvironmentSection
from fovea.config.recipes import (
    RECIPES,
    apply_override,
    explain,
    load_run,
    nearest,
    recipe_names,
    study_names,
)
from fovea.config.run import INSTRUCTIONS, Run
from fovea.config.sections import (
    AlgorithmSection,
    DifficultySection,
    EvaluationSection,
    FinetuneSection,
    InterventionSection,
    OptimizerSection,
    PicturesSection,
    ProblemsSection,
    SamplingSection,
    Section,
)

__all__ = [
    "INSTRUCTIONS", "RECIPES", "AlgorithmSection", "CriticSection", "DifficultySection", "EnvironmentSection",
    "EvaluationSection", "FinetuneSection", "InterventionSection", "OptimizerSection", "PicturesSection",
    "ProblemsSection", "Run", "SamplingSection", "Section", "apply_override", "explain", "load_run", "nearest",
    "recipe_names", "study_names",
]  # fmt: skip
