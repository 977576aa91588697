"""How a small model of each family is built: its special tokens, chat template, config and processor.

A family's `Builder` is a value; `construct.py` holds the table of them. Templates are the publishers' own without
system prompts and video, for a tiny model has no use for either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import (
    GotOcr2ImageProcessor,
    Idefics3Config,
    Idefics3ImageProcessor,
    Idefics3Processor,
    InternVLConfig,
    InternVLProcessor,
    InternVLVideoProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
    SmolVLMConfig,
    SmolVLMImageProcessor,
    SmolVLMProcessor,
    SmolVLMVideoProcessor,
)

CHATML_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
QWEN_TOKENS = (
    *CHATML_TOKENS,
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def chatml(picture: str) -> str:
    """The turn format of Qwen and most others with `picture` where the message puts an image."""
    return (
        "{% for message in messages %}<|im_start|>{{ message.role }}\n"
        "{% if message.content is string %}{{ message.content }}"
        "{% else %}{% for part in message.content %}"
        "{% if part.type == 'image' %}" + picture + "{% elif part.type == 'text' %}{{ part.text }}{% endif %}"
        "{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )


QWEN_TEMPLATE = chatml("<|vision_start|><|image_pad|><|vision_end|>")

_IDEFICS_TEMPLATE = (
    "<|im_start|>{% for message in messages %}{{ message.role | capitalize }}"
    "{% if message.content[0].type == 'image' %}:{% else %}: {% endif %}"
    "{% for part in message.content %}{% if part.type == 'text' %}{{ part.text }}"
    "{% elif part.type == 'image' %}<image>{% endif %}{% endfor %}<end_of_utterance>\n{% endfor %}"
    "{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sizes:
    """Sizes of a small model; the defaults give 4 to 6 million weights."""

    vocab_size: int = 1024
    text_layers: int = 4
    text_width: int = 256
    text_mlp: int = 768
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    vision_layers: int = 4
    vision_width: int = 128
    vision_mlp: int = 512
    vision_heads: int = 4
    patch_size: int = 14
    image_size: int = 56
    """Side of a tile in pixels, for the families that cut pictures into tiles."""
    min_pixels: int = 28 * 28
    """Smallest picture after the resize, for the families that resize freely."""
    max_pixels: int = 28 * 28 * 1280
    pixel_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Of each colour, taken off before the division by `pixel_std`, for the families that resize freely."""
    pixel_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    position_grid: int = 16
    deepstack: tuple[int, ...] = (1, 2)
    """Vision layers whose features go into the text (Qwen3-VL)."""
    experts: int = 4
    """Experts a layer, two of them active (mixtures only)."""
    context: int = 8192
    initializer_range: float = 0.02

    @property
    def tile_tokens(self) -> int:
        """Image tokens of a tile where 2 x 2 patches become one."""
        return (self.image_size // self.patch_size) ** 2 // 4


@dataclass(frozen=True, kw_only=True, slots=True)
class Builder:
    """What makes a small model of one family."""

    tokens: tuple[str, ...]
    """Special tokens, in the order of their ids; the first one pads."""
    template: str
    """The chat template."""
    config: Callable[[PreTrainedTokenizerFast, Sizes], Any]
    """The model's config. Embeddings are untied."""
    processor: Callable[[PreTrainedTokenizerFast, Sizes, str], Any]
    """The family's own processor with a chat template."""
    eos: str = "<|im_end|>"
    """The token that ends a reply."""
    named: Mapping[str, str] = field(default_factory=dict)
    """Special tokens that the tokenizer must know by a name (`tokenizer.image_token`)."""


def token_id(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    found = tokenizer.convert_tokens_to_ids(name)
    assert isinstance(found, int)
    return found


def text_section(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, **more: Any) -> dict[str, Any]:
    """The language model's part of a config, as most families name it."""
    return {
        "vocab_size": max(sizes.vocab_size, len(tokenizer)),
        "hidden_size": sizes.text_width,
        "intermediate_size": sizes.text_mlp,
        "num_hidden_layers": sizes.text_layers,
        "num_attention_heads": sizes.heads,
        "num_key_value_heads": sizes.kv_heads,
        "head_dim": sizes.head_dim,
        "max_position_embeddings": sizes.context,
        "initializer_range": sizes.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id,
        "tie_word_embeddings": False,
    } | more


def vision_section(sizes: Sizes, **more: Any) -> dict[str, Any]:
    """The vision tower's part of a config, as the tiled families name it."""
    return {
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_mlp,
        "num_hidden_layers": sizes.vision_layers,
        "num_attention_heads": sizes.vision_heads,
        "image_size": sizes.image_size,
        "patch_size": sizes.patch_size,
        "initializer_range": sizes.initializer_range,
    } | more


# ---------------------------------------------------------------- Qwen


def _qwen_parts(
    tokenizer: PreTrainedTokenizerFast, sizes: Sizes
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """(text, vision, token ids and the rest) of a Qwen-VL config."""
    half = sizes.head_dim // 2
    section = [half - 2 * (half * 3 // 8), half * 3 // 8, half * 3 // 8]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": section}
    text = text_section(tokenizer, sizes, rope_parameters=rope)
    text.pop("tie_word_embeddings")  # theirs is the whole config's
    vision: dict[str, Any] = {
        "depth": sizes.vision_layers,
        "hidden_size": sizes.vision_width,
        "intermediate_size": sizes.vision_mlp,
        "num_heads": sizes.vision_heads,
        "patch_size": sizes.patch_size,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": sizes.text_width,
        "initializer_range": sizes.initializer_range,
    }
    whole: dict[str, Any] = {
        "image_token_id": token_id(tokenizer, "<|image_pad|>"),
        "video_token_id": token_id(tokenizer, "<|video_pad|>"),
        "vision_start_token_id": token_id(tokenizer, "<|vision_start|>"),
        "vision_end_token_id": token_id(tokenizer, "<|vision_end|>"),
        "tie_word_embeddings": False,
    }
    return text, vision, whole


def qwen2_vl_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text, vision, whole = _qwen_parts(tokenizer, sizes)
    text.pop("head_dim")  # this family derives it from the width
    for name in ("intermediate_size", "out_hidden_size", "hidden_size"):
        vision.pop(name)
    vision |= {"embed_dim": sizes.vision_width, "hidden_size": sizes.text_width}
    vision["mlp_ratio"] = sizes.vision_mlp // sizes.vision_width
    return Qwen2VLConfig(text_config=text, vision_config=vision, **whole)


def qwen2_5_vl_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text, vision, whole = _qwen_parts(tokenizer, sizes)
    text.pop("head_dim")
    full = [layer for layer in range(sizes.vision_layers) if layer % 2 == 1]
    vision |= {
        "window_size": 8 * sizes.patch_size,
        "fullatt_block_indexes": full,
        "hidden_act": "silu",
    }
    return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **whole)


def qwen3_vl_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text, vision, whole = qwen3_parts(tokenizer, sizes)
    return Qwen3VLConfig(text_config=text, vision_config=vision, **whole)


def qwen3_vl_moe_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text, vision, whole = qwen3_parts(tokenizer, sizes)
    text |= {
        "num_experts": sizes.experts,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": sizes.text_mlp // 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **whole)


def qwen3_parts(
    tokenizer: PreTrainedTokenizerFast, sizes: Sizes
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    text, vision, whole = _qwen_parts(tokenizer, sizes)
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {
        "num_position_embeddings": sizes.position_grid**2,
        "deepstack_visual_indexes": list(sizes.deepstack),
        "hidden_act": "gelu_pytorch_tanh",
    }
    return text, vision, whole


def qwen_processor(
    processor: Any, video_processor: Any
) -> Callable[[PreTrainedTokenizerFast, Sizes, str], Any]:
    def build(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, template: str) -> Any:
        grid: dict[str, Any] = {"patch_size": sizes.patch_size, "merge_size": 2, "temporal_patch_size": 2}
        size = {"shortest_edge": sizes.min_pixels, "longest_edge": sizes.max_pixels}
        return processor(
            image_processor=Qwen2VLImageProcessor(
                size=size, image_mean=list(sizes.pixel_mean), image_std=list(sizes.pixel_std), **grid
            ),
            tokenizer=tokenizer,
            video_processor=video_processor(**grid),
            chat_template=template,
        )

    return build


def _qwen(config: Callable[[PreTrainedTokenizerFast, Sizes], Any], processor: Any, video: Any) -> Builder:
    return Builder(
        tokens=QWEN_TOKENS,
        template=QWEN_TEMPLATE,
        config=config,
        processor=qwen_processor(processor, video),
    )


# ---------------------------------------------------------------- families with tiles


def internvl_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text = text_section(tokenizer, sizes, model_type="qwen2")
    text.pop("head_dim")
    return InternVLConfig(
        text_config=text,
        vision_config=vision_section(sizes, model_type="internvl_vision"),
        image_token_id=token_id(tokenizer, "<IMG_CONTEXT>"),
        image_seq_length=sizes.tile_tokens,
        tie_word_embeddings=False,
    )


def _internvl_processor(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, template: str) -> Any:
    side = {"height": sizes.image_size, "width": sizes.image_size}
    return InternVLProcessor(
        image_processor=GotOcr2ImageProcessor(size=side, crop_to_patches=True, max_patches=4),
        tokenizer=tokenizer,
        video_processor=InternVLVideoProcessor(size=side),
        image_seq_length=sizes.tile_tokens,
        chat_template=template,
    )


def llava_onevision_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text = text_section(tokenizer, sizes, model_type="qwen2")
    text.pop("head_dim")
    vision = vision_section(sizes, model_type="siglip_vision_model", vision_use_head=False)
    return LlavaOnevisionConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=token_id(tokenizer, "<image>"),
        video_token_index=token_id(tokenizer, "<video>"),
        image_grid_pinpoints=_pinpoints(sizes),
        tie_word_embeddings=False,
    )


def _pinpoints(sizes: Sizes) -> list[list[int]]:
    """Up to 3 x 3 tiles: (height, width) of every canvas."""
    return [
        [sizes.image_size * rows, sizes.image_size * columns] for rows in (1, 2, 3) for columns in (1, 2, 3)
    ]


def _llava_onevision_processor(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, template: str) -> Any:
    side = {"height": sizes.image_size, "width": sizes.image_size}
    return LlavaOnevisionProcessor(
        image_processor=LlavaOnevisionImageProcessor(size=side, image_grid_pinpoints=_pinpoints(sizes)),
        tokenizer=tokenizer,
        video_processor=LlavaOnevisionVideoProcessor(size=side),
        num_image_tokens=(sizes.image_size // sizes.patch_size) ** 2,
        vision_feature_select_strategy="full",
        chat_template=template,
    )


def _idefics_config(kind: Any) -> Callable[[PreTrainedTokenizerFast, Sizes], Any]:
    def build(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
        return kind(
            text_config=text_section(tokenizer, sizes, model_type="llama"),
            vision_config=vision_section(sizes),
            image_token_id=token_id(tokenizer, "<image>"),
            scale_factor=2,
            pad_token_id=tokenizer.pad_token_id,
            tie_word_embeddings=False,
        )

    return build


def _idefics_images(kind: Any, sizes: Sizes) -> Any:
    return kind(
        size={"longest_edge": 3 * sizes.image_size}, max_image_size={"longest_edge": sizes.image_size}
    )


def _idefics3_processor(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, template: str) -> Any:
    return Idefics3Processor(
        image_processor=_idefics_images(Idefics3ImageProcessor, sizes),
        tokenizer=tokenizer,
        image_seq_len=sizes.tile_tokens,
        chat_template=template,
    )


def _smolvlm_processor(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, template: str) -> Any:
    edges: dict[str, Any] = {
        "size": {"longest_edge": 3 * sizes.image_size},
        "max_image_size": {"longest_edge": sizes.image_size},
    }
    return SmolVLMProcessor(
        image_processor=_idefics_images(SmolVLMImageProcessor, sizes),
        tokenizer=tokenizer,
        video_processor=SmolVLMVideoProcessor(**edges, fps=1, num_frames=4),
        image_seq_len=sizes.tile_tokens,
        chat_template=template,
    )


_IDEFICS_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<end_of_utterance>",
    "<fake_token_around_image>",
    "<image>",
    "<global-img>",
    *(f"<row_{row}_col_{column}>" for row in range(1, 7) for column in range(1, 7)),
)


def _idefics(config: Any, processor: Callable[[PreTrainedTokenizerFast, Sizes, str], Any]) -> Builder:
    return Builder(
        tokens=_IDEFICS_TOKENS,
        template=_IDEFICS_TEMPLATE,
        config=_idefics_config(config),
        processor=processor,
        eos="<end_of_utterance>",
    )


BUILDERS: dict[str, Builder] = {
    "qwen2_vl": _qwen(qwen2_vl_config, Qwen2VLProcessor, Qwen2VLVideoProcessor),
    "qwen2_5_vl": _qwen(qwen2_5_vl_config, Qwen2_5_VLProcessor, Qwen2VLVideoProcessor),
    "qwen3_vl": _qwen(qwen3_vl_config, Qwen3VLProcessor, Qwen3VLVideoProcessor),
    "qwen3_vl_moe": _qwen(qwen3_vl_moe_config, Qwen3VLProcessor, Qwen3VLVideoProcessor),
    "internvl": Builder(
        tokens=(*CHATML_TOKENS, "<img>", "</img>", "<IMG_CONTEXT>", "<video>"),
        template=chatml("<IMG_CONTEXT>\n"),
        config=internvl_config,
        processor=_internvl_processor,
        named={
            "start_image_token": "<img>",
            "end_image_token": "</img>",
            "context_image_token": "<IMG_CONTEXT>",
            "video_token": "<video>",
        },
    ),
    "idefics3": _idefics(Idefics3Config, _idefics3_processor),
    "smolvlm": _idefics(SmolVLMConfig, _smolvlm_processor),
    "llava_onevision": Builder(
        tokens=(*CHATML_TOKENS, "<image>", "<video>"),
        template=chatml("<image>\n"),
        config=llava_onevision_config,
        processor=_llava_onevision_processor,
        named={"image_token": "<image>", "video_token": "<video>"},
    ),
}
