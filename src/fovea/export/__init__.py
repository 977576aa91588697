"""Export: a run's model as a folder that plain transformers (or peft) loads, with a model card."""

from fovea.export.folder import Exported, check_target, export
from fovea.export.source import Source, find_source

__all__ = ["Exported", "Source", "check_target", "export", "find_source"]
