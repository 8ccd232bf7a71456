"""The cells of a pair as a prompt and two answers, wherever the prompt's turns stand."""

from __future__ import annotations

from typing import Any

from deltalearn.formats.turns import Unfit, assistant_text, system_apart, whole_dialogue
from deltalearn.records import Message


def split_sides(
    prompt: str | list[Message] | None, chosen: Any, rejected: Any
) -> tuple[list[Message], str, str]:
    """Part the cells of a row into the prompt and both answers.

    Args:
        prompt: Text, turns, or None where the sides begin with it.
        chosen: Text, or turns that may repeat the prompt.
        rejected: Likewise.

    Returns:
        (prompt, chosen answer, rejected answer).

    Raises:
        Unfit: If they do not fit together.
    """
    if prompt is None:
        return _implicit(whole_dialogue(chosen), whole_dialogue(rejected))
    if isinstance(prompt, str):
        if not prompt.strip():
            raise Unfit("blank_prompt", "the prompt is empty")
        turns = _turns_around(prompt, chosen, rejected)
    elif joined := _joined(prompt, chosen, rejected):
        return joined, assistant_text(chosen[-1]), assistant_text(rejected[-1])
    else:
        turns = prompt
    return turns, _answer_after(turns, chosen), _answer_after(turns, rejected)


def _implicit(chosen: list[Message], rejected: list[Message]) -> tuple[list[Message], str, str]:
    """Split two conversations after the turns they share; identical ones before their answers."""
    most = min(len(chosen), len(rejected)) - 1
    shared = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    rest = max(len(chosen), len(rejected)) - shared
    if rest > 1:
        apart = [side[shared]["role"] for side in (chosen, rejected)]
        reason = "several_turns" if "assistant" in apart else "prompts_differ"
        detail = f"the conversations part at turn {shared}, {rest} turns before the end"
        raise Unfit(reason, detail)
    return chosen[:shared], assistant_text(chosen[-1]), assistant_text(rejected[-1])


def _joined(prompt: list[Message], chosen: Any, rejected: Any) -> list[Message] | None:
    """A prompt of which a column has the one part and both sides the other; None if that is not so.

    The column has the first question and the sides the rest, or the column all and the sides the
    last question; either may have the system turn.
    """
    if isinstance(chosen, str) or isinstance(rejected, str) or chosen[:-1] != rejected[:-1]:
        return None
    turns = chosen[:-1]
    if not turns:
        return None
    if prompt[-len(turns) :] == turns:
        return prompt
    (system, first), (own, rest) = system_apart(prompt), system_apart(turns)
    if rest[: len(first)] == first and (not system or not own or system == own):
        return (own or system) + rest
    return None


def _turns_around(
    prompt: str, chosen: str | list[Message], rejected: str | list[Message]
) -> list[Message]:
    """The conversation that a prompt of plain text stands for.

    Where a side is a whole conversation, its turns before the answer, which must repeat the prompt
    as a user's turn, a system turn and earlier ones included; else the prompt as a user's turn.
    """
    for side in (chosen, rejected):
        if not isinstance(side, str) and len(side) > 1:
            if side[0]["role"] == "assistant":
                raise _several_turns(len(side))
            users = [turn["content"].strip() for turn in side[:-1] if turn["role"] == "user"]
            if prompt.strip() not in users:
                raise Unfit("prompts_differ", "the conversation does not repeat the prompt")
            return side[:-1]
    return [Message(role="user", content=prompt)]


def _answer_after(prompt: list[Message], side: str | list[Message]) -> str:
    """The answer of a side: text, one turn, or the turn that follows `prompt` in a conversation."""
    if isinstance(side, str):
        return side
    if len(side) == 1:
        return assistant_text(side[0])
    if side[0]["role"] == "assistant" and prompt[0]["role"] != "assistant":
        raise _several_turns(len(side))
    shared = next((i for i, (a, b) in enumerate(zip(prompt, side, strict=False)) if a != b), None)
    if shared is not None or len(side) <= len(prompt):
        roles = {prompt[shared]["role"], side[shared]["role"]} if shared is not None else set()
        reason = "several_turns" if roles == {"assistant"} else "prompts_differ"
        raise Unfit(reason, "the conversation does not begin with the prompt's turns")
    if len(side) > len(prompt) + 1:
        raise _several_turns(len(side) - len(prompt))
    return assistant_text(side[-1])


def _several_turns(turns: int) -> Unfit:
    return Unfit("several_turns", f"{turns} turns follow the prompt; an answer is one turn")
