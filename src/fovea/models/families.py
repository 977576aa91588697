"""The one table of model families. A new family is a file beside this one and a line here."""

from __future__ import annotations

from typing import Any

from fovea.models import (
    gemma3,
    idefics3,
    internvl,
    llava_onevision,
    qwen2_5_vl,
    qwen2_vl,
    qwen3_5,
    qwen3_vl,
    qwen3_vl_moe,
)
from fovea.models.adapter import Family
from fovea.types import UserError

FAMILIES: dict[str, Family] = {
    "qwen2_vl": qwen2_vl.FAMILY,
    "qwen2_5_vl": qwen2_5_vl.FAMILY,
    "qwen3_vl": qwen3_vl.FAMILY,
    "qwen3_vl_moe": qwen3_vl_moe.FAMILY,
    "internvl": internvl.FAMILY,
    "idefics3": idefics3.FAMILY,
    "smolvlm": idefics3.SMOLVLM,
    "llava_onevision": llava_onevision.FAMILY,
    "gemma3": gemma3.FAMILY,
    "qwen3_5": qwen3_5.FAMILY,
    "qwen3_5_moe": qwen3_5.MOE,
}


def family_of(config: Any) -> Family:
    """The family that serves a model of `config`. Raises UserError with the supported ones."""
    found = next((family for family in FAMILIES.values() if family.matches(config)), None)
    if found is None:
        raise UserError(
            f"The model family {config.model_type!r} is not supported; supported: {', '.join(FAMILIES)}."
        )
    return found
