"""Qwen3-VL with a mixture of experts (arXiv:2511.21631): Qwen3-VL around another language model.

The router runs as in a plain forward pass: no load-balancing loss is added, no noise, and it is trained like any
other weight of the text model.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fovea.models import qwen3_vl


def matches(config: Any) -> bool:
    return config.model_type == "qwen3_vl_moe"


FAMILY = replace(qwen3_vl.FAMILY, name="qwen3_vl_moe", matches=matches)
