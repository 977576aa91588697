"""Prompts that continue a conversation token by token: the turns so far as the model saw and wrote them, then a new
question with its pictures.

Token in, token out: a reply stands in the next prompt as the very ids that were sampled, never decoded and tokenized
again, and no earlier turn is rendered again. So a chat template that drops earlier thoughts (Qwen3's does) drops
nothing here, and what a turn was sampled under is a prefix of what the next one is sampled under. Only the new turn
goes through the template, behind a stand-in for everything before it.

A family that treats one picture otherwise than several (LLaVA-OneVision) does so turn by turn here; its own processor
would count the pictures of the whole conversation, which changes earlier turns.

Not here: episodes and which turns a prompt keeps; features of pictures shared between the prompts of an episode.
Try: `continue_prompt(policy, policy.prompt(first), completion.token_ids, second)`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jinja2.exceptions import TemplateError
from torch import Tensor

from fovea.models.adapter import Pictures, Prompt, Rendered, join_media, speak
from fovea.models.policy import Policy, named
from fovea.models.rendering import asked, special_ids
from fovea.types import Problem, UserError

# Stands for the reply before a turn while the template does its work; other than the stand-in for the question.
_REPLY = "\ue0f2\ue0f3"


def continue_prompt(
    policy: Policy, before: Prompt, reply: np.ndarray, problem: Problem, instruction: str | None = None
) -> Prompt:
    """The prompt after `before`, its `reply` (int64 [T], as sampled) and `problem` as a further user turn.

    A reply that does not end with the template's end token (it ran into `max_new_tokens`, or ended with another
    token) is followed by that token, as context. The prompt's `problem` is the new one alone; its pictures' tensors,
    `picture_tokens` and `resized` are those of all turns in order, and its positions go over the whole.

    Raises UserError, naming the problem, where `Policy.prompt` does, and for a chat template that cannot be continued;
    ValueError for a reply with a media token, which is never sampled.
    """
    new = _later_turn(policy, problem, instruction)
    return _prompt(policy, problem, [_rendered(before), *_said(policy, reply, new), new.turn])


def conversation(
    policy: Policy,
    turns: Sequence[tuple[Problem, np.ndarray]],
    last: Problem,
    instruction: str | None = None,
) -> Prompt:
    """The prompt of `last` after `turns` of (problem, its reply as sampled): `continue_prompt` folded over them, with
    the pictures' tensors and the positions put together once.

    `turns` may be a window of a longer conversation: its first turn is then rendered as a first turn. `instruction`
    goes with every question. Raises as `continue_prompt`.

    Example: conversation(policy, [(first, reply.token_ids)], second)
    """
    if not turns:
        return policy.prompt(last, instruction)
    parts = [_rendered(policy.prompt(turns[0][0], instruction))]
    following = [*(problem for problem, _ in turns[1:]), last]
    for (_, reply), problem in zip(turns, following, strict=True):
        new = _later_turn(policy, problem, instruction)
        parts += [*_said(policy, reply, new), new.turn]
    return _prompt(policy, last, parts)


# ---------------------------------------------------------------- one turn


@dataclass(frozen=True, kw_only=True, slots=True)
class _Later:
    """A user turn that is not the first, and what the template puts between it and the reply before it."""

    end: Tensor
    """[E] long: what ends the reply; the template's end token is its last one."""
    turn: Rendered
    """Everything behind that token: the turn itself up to the generation prompt."""


def _later_turn(policy: Policy, problem: Problem, instruction: str | None) -> _Later:
    """The turn by the family's own rendering, cut behind the token that ends the reply before it.

    A tokenizer cuts at special tokens before anything else, so what stands behind one is tokenized as it would be in
    the whole conversation.
    """
    text = asked(problem.question, instruction)
    try:
        rendered = policy.family.render(_BehindReply(processor=policy.processor), problem.images, text)
    except UserError as error:
        raise UserError(named(problem, str(error))) from error
    special = special_ids(policy.processor.tokenizer)
    ids = rendered.token_ids.tolist()
    first = next((i for i, token in enumerate(ids) if token in special), None)
    if policy.reply_end is None or first is None or ids[first] != policy.reply_end:
        raise UserError(
            "The model's chat template does not end every reply with the same special token, so a conversation "
            "cannot be continued token by token; use a template that does, or show single turns."
        )
    cut = first + 1
    turn = Rendered(
        token_ids=rendered.token_ids[cut:],
        image_mask=rendered.image_mask[cut:],
        pictures=rendered.pictures,
    )
    return _Later(end=rendered.token_ids[:cut], turn=turn)


@dataclass(frozen=True, kw_only=True, slots=True)
class _BehindReply:
    """A processor whose template renders a chat as it stands behind an earlier reply: with what ends that reply,
    without system prompt and first token. In everything else the processor itself."""

    processor: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def apply_chat_template(self, chat: list[dict[str, Any]], **how: Any) -> str:
        earlier = [
            {"role": role, "content": [{"type": "text", "text": text}]}
            for role, text in (("user", "a"), ("assistant", _REPLY))
        ]
        try:
            whole = self.processor.apply_chat_template([*earlier, *chat], **how)
        except TemplateError as error:
            raise UserError(
                f"The model's chat template refuses a second question ({error}); use a template for conversations, "
                "or show single turns."
            ) from error
        if whole.count(_REPLY) != 1:
            raise UserError(
                "The model's chat template does not show an earlier reply once and as it is, so a conversation "
                "cannot be continued token by token; use another template, or show single turns."
            )
        return str(whole.partition(_REPLY)[2])

    def __call__(self, **inputs: Any) -> Any:
        return self.processor(**inputs, add_special_tokens=False)  # the first token is the first turn's


def _said(policy: Policy, reply: np.ndarray, new: _Later) -> list[Rendered]:
    """The reply's ids as they are, and its end if it has not got one."""
    ids = torch.from_numpy(np.asarray(reply, dtype=np.int64).copy())
    media = torch.tensor(policy.family.media_ids(policy.model.config))
    if bool(torch.isin(ids, media).any()):
        raise ValueError("the reply holds a media token, which is never sampled")
    ended = len(ids) > 0 and int(ids[-1]) == int(new.end[-1])
    return [_text(ids)] if ended else [_text(ids), _text(new.end)]


# ---------------------------------------------------------------- all turns


def _text(ids: Tensor) -> Rendered:
    return Rendered(token_ids=ids, image_mask=torch.zeros(len(ids), dtype=torch.bool), pictures=Pictures())


def _rendered(prompt: Prompt) -> Rendered:
    """What a prompt was made of."""
    pictures = Pictures(
        media=prompt.media,
        rows=prompt.picture_rows,
        tokens=prompt.picture_tokens,
        resized=prompt.resized,
    )
    return Rendered(token_ids=prompt.token_ids, image_mask=prompt.image_mask, pictures=pictures)


def _prompt(policy: Policy, problem: Problem, parts: Sequence[Rendered]) -> Prompt:
    """The parts as one prompt; the last one is the problem's own turn."""
    family = policy.family
    whole = _joined(parts)
    _check_room(policy, problem, whole)
    positions = family.positions(policy.model, whole)
    pictures = whole.pictures
    return Prompt(
        problem=speak(problem, family.frame, parts[-1].pictures.resized),
        token_ids=whole.token_ids,
        positions=positions,
        next_position=int(positions.max()) + 1,
        image_mask=whole.image_mask,
        media=pictures.media,
        picture_rows=pictures.rows,
        picture_tokens=pictures.tokens,
        resized=pictures.resized,
    )


def _joined(parts: Sequence[Rendered]) -> Rendered:
    shown = [part.pictures for part in parts if part.pictures.tokens]
    pictures = Pictures(
        media=join_media([one.media for one in shown], torch.device("cpu")),
        rows={key: sum((one.rows[key] for one in shown), ()) for key in (shown[0].rows if shown else ())},
        tokens=sum((one.tokens for one in shown), ()),
        resized=sum((one.resized for one in shown), ()),
    )
    return Rendered(
        token_ids=torch.cat([part.token_ids for part in parts]),
        image_mask=torch.cat([part.image_mask for part in parts]),
        pictures=pictures,
    )


def _check_room(policy: Policy, problem: Problem, whole: Rendered) -> None:
    limit, tokens, reply = policy.context, len(whole.token_ids), policy.reply_tokens
    if limit is None or tokens + reply <= limit:
        return
    pictured = sum(whole.pictures.tokens)
    pictures = f" ({pictured} of them for pictures)" if pictured else ""
    room = f" and {reply} for the reply" if reply else ""
    fixes = [
        "keep fewer turns",
        *["use smaller pictures or a lower max_pixels"] * bool(pictured),
        *["lower sampling.max_new_tokens"] * bool(reply),
    ]
    text = (
        f"with the turns before it the prompt needs {tokens} tokens{pictures}{room}, but the model's context holds "
        f"{limit}; {' or '.join(fixes)}."
    )
    raise UserError(named(problem, text))
