"""Small models of the families whose language models are not plainly causal: Gemma 3 and Qwen3.5.

Beside `construct_families.py`, in the same form. Windows are shorter than a picture and layers alternate, so that
two layers already hold every kind there is.
"""

from __future__ import annotations

from typing import Any

from transformers import (
    Gemma3Config,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    Qwen3_5Config,
    Qwen3_5MoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from fovea.models.construct_families import (
    QWEN_TEMPLATE,
    QWEN_TOKENS,
    Builder,
    Sizes,
    qwen3_parts,
    qwen_processor,
    text_section,
    token_id,
    vision_section,
)

_GEMMA_TEMPLATE = (
    "<bos>{% for message in messages %}<start_of_turn>"
    "{{ 'model' if message.role == 'assistant' else message.role }}\n"
    "{% if message.content is string %}{{ message.content | trim }}"
    "{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}<start_of_image>"
    "{% elif part.type == 'text' %}{{ part.text | trim }}{% endif %}"
    "{% endfor %}{% endif %}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def gemma3_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    """Every other layer has a window of 12 tokens; a picture is a quarter of its patches."""
    rope = {
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
    }
    kinds = ("sliding_attention", "full_attention")
    text = text_section(
        tokenizer,
        sizes,
        rope_parameters=rope,
        layer_types=[kinds[layer % 2] for layer in range(sizes.text_layers)],
        sliding_window=12,
        query_pre_attn_scalar=sizes.head_dim,
    )
    vision = vision_section(sizes, model_type="siglip_vision_model", vision_use_head=False)
    return Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=sizes.tile_tokens,
        boi_token_index=token_id(tokenizer, "<start_of_image>"),
        eoi_token_index=token_id(tokenizer, "<end_of_image>"),
        image_token_index=token_id(tokenizer, "<image_soft_token>"),
        tie_word_embeddings=False,
    )


def _gemma3_processor(tokenizer: PreTrainedTokenizerFast, sizes: Sizes, template: str) -> Any:
    side = {"height": sizes.image_size, "width": sizes.image_size}
    return Gemma3Processor(
        image_processor=Gemma3ImageProcessor(size=side),
        tokenizer=tokenizer,
        chat_template=template,
        image_seq_length=sizes.tile_tokens,
    )


def _qwen3_5_parts(
    tokenizer: PreTrainedTokenizerFast, sizes: Sizes
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Delta nets and full attention in turn; a quarter of a head is rotated, as in the published models."""
    text, vision, whole = qwen3_parts(tokenizer, sizes)
    vision.pop("deepstack_visual_indexes")
    kinds = ("linear_attention", "full_attention")
    pairs = sizes.head_dim // 8
    third = pairs // 3
    text["rope_parameters"] |= {
        "partial_rotary_factor": 0.25,
        "mrope_section": [pairs - 2 * third, third, third],
    }
    text |= {
        "layer_types": [kinds[layer % 2] for layer in range(sizes.text_layers)],
        "linear_key_head_dim": sizes.head_dim // 2,
        "linear_value_head_dim": sizes.head_dim // 2,
        "linear_num_key_heads": sizes.kv_heads,
        "linear_num_value_heads": 2 * sizes.kv_heads,
        "linear_conv_kernel_dim": 4,
    }
    return text, vision, whole


def qwen3_5_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text, vision, whole = _qwen3_5_parts(tokenizer, sizes)
    return Qwen3_5Config(text_config=text, vision_config=vision, **whole)


def qwen3_5_moe_config(tokenizer: PreTrainedTokenizerFast, sizes: Sizes) -> Any:
    text, vision, whole = _qwen3_5_parts(tokenizer, sizes)
    text.pop("intermediate_size")
    text |= {
        "num_experts": sizes.experts,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": sizes.text_mlp // 2,
        "shared_expert_intermediate_size": sizes.text_mlp // 2,
    }
    return Qwen3_5MoeConfig(text_config=text, vision_config=vision, **whole)


def _qwen3_5(config: Any) -> Builder:
    return Builder(
        tokens=QWEN_TOKENS,
        template=QWEN_TEMPLATE,
        config=config,
        processor=qwen_processor(Qwen3VLProcessor, Qwen3VLVideoProcessor),
    )


MORE: dict[str, Builder] = {
    "gemma3": Builder(
        tokens=(
            "<pad>",
            "<eos>",
            "<bos>",
            "<start_of_turn>",
            "<end_of_turn>",
            "<start_of_image>",
            "<end_of_image>",
            "<image_soft_token>",
        ),
        template=_GEMMA_TEMPLATE,
        config=gemma3_config,
        processor=_gemma3_processor,
        eos="<end_of_turn>",
        named={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    ),
    "qwen3_5": _qwen3_5(qwen3_5_config),
    "qwen3_5_moe": _qwen3_5(qwen3_5_moe_config),
}
