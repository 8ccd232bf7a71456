"""How an answer stands behind its prompt: found out on the chat template itself, at the start.

A template may write more than the generation header before an answer: `<|channel|>final<|message|>`
(gpt-oss), a space (Vicuna, Llama 2), an empty block of thoughts (Qwen3). A model has learnt to
write that itself, so it belongs to the answer of everything that is trained and scored. A template
that renders an answer in another way behind its own prompt is refused, with both texts.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from deltalearn.errors import UserError
from deltalearn.lm.encode import Encoder, puts_space_first
from deltalearn.lm.reasoning import CHANNEL, CLOSE, OPEN, TRACES, opening_mark, split_reasoning
from deltalearn.lm.render import PLAIN, whole_text
from deltalearn.records import Message, Rendering

PROBE = "Qzq"  # an answer that is found again in what a template makes of it
ANSWERS = (PROBE, f"\n {PROBE} \n\n")  # templates may trim an answer, but do nothing else to it
_OPENS = "|".join(map(re.escape, TRACES))
_CLOSES = "|".join(map(re.escape, TRACES.values()))
BLOCK = re.compile(rf"({_OPENS})\s*({_CLOSES})")
THOUGHTS_AT_END = re.compile(
    rf"({_OPENS})(thought)?\s*(({_CLOSES})\s*)?\Z|({_CLOSES})\s*\Z"
)  # Gemma 4 names its channel


def _says(role: str, content: str) -> Message:
    return Message(role=role, content=content)


ASKED = "Qxq"  # a question, likewise
QUESTION = (_says("user", ASKED),)
CONVERSATIONS = (
    QUESTION,
    (_says("system", "y"), *QUESTION),
    (*QUESTION, _says("assistant", "z"), *QUESTION),
)


@dataclass(frozen=True)
class Turn:
    r"""The assistant's turn under one chat template.

    Attributes:
        end: Id with which a turn ends.
        before: Text between a rendered prompt and an answer.
        before_thoughts: The same before an answer that begins with its reasoning.
        opened: What of a prompt opens the reasoning, "<think>\n"; empty if it opens none.
        closed: True if a prompt closes the reasoning, so that an answer has none.
        continuing: True if answers lose the space that the tokenizer puts before every text.
    """

    end: int
    before: str = ""
    before_thoughts: str = ""
    opened: str = ""
    closed: bool = False
    continuing: bool = False

    def text(self, answer: str) -> str | None:
        """Write an answer as it stands behind the prompt, with one mark of reasoning at most.

        Args:
            answer: With or without its reasoning.

        Returns:
            The text to train or score; None if it has reasoning and the prompt leaves no place.
        """
        reasoning, rest = split_reasoning(answer)
        if not reasoning:
            return answer if answer.startswith(self.before) else self.before + answer
        mark = next((m for m in TRACES if reasoning.lstrip().startswith(m)), None)
        if mark is None:  # channels of harmony, which name the answer's too
            return answer if CHANNEL in self.before else self.before_thoughts + answer
        thoughts, close, gap = reasoning.lstrip().removeprefix(mark).partition(TRACES[mark])
        if self.closed:
            return rest if close and not thoughts.strip() else None
        if self.opened:
            own = opening_mark(self.opened)
            thoughts = thoughts.removeprefix(self.opened.removeprefix(own))
            return thoughts + (TRACES[own] if close else "") + gap + rest
        return self.before_thoughts + answer


def turn_of(tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> Turn:
    """Find out how answers stand behind prompts.

    A question is rendered alone and with an answer, also behind a system turn and earlier turns,
    and with white space around the answer.

    Args:
        tokenizer: Has the chat template.
        rendering: Arguments and day of the template.

    Returns:
        The assistant's turn.

    Raises:
        UserError: If a prompt is not the beginning of the conversation with its answer, or if what
            is between them is not the same everywhere; with both texts.
    """
    prompt = whole_text(tokenizer, QUESTION, rendering, waiting=True)
    before = _before_all(tokenizer, rendering)
    thoughts = _thoughts_at_end(prompt or "")
    closed = _is_closed(thoughts)
    return Turn(
        end_of_turn(tokenizer, rendering),
        before,
        _before_thoughts(tokenizer, rendering, prompt, before),
        "" if closed else thoughts,
        closed,
        _continuing(tokenizer, prompt, before),
    )


def _thoughts_at_end(prompt: str) -> str:
    """The marks of thoughts that a prompt ends with, and what stands around them."""
    found = THOUGHTS_AT_END.search(prompt)
    return found[0] if found else ""


def _is_closed(thoughts: str) -> bool:
    return any(mark in thoughts for mark in TRACES.values())


def _before_all(tokenizer: PreTrainedTokenizerBase, rendering: Rendering) -> str:
    """What is before an answer, in all conversations that the template takes."""
    known: tuple[str, tuple[str, str]] | None = None
    for turns in CONVERSATIONS:
        for answer in ANSWERS:
            prompt = whole_text(tokenizer, turns, rendering, waiting=True)
            whole = whole_text(tokenizer, [*turns, _says("assistant", answer)], rendering)
            if prompt is None or whole is None:
                continue
            if (before := _before(*map(_from_question, (prompt, whole)))) is None:
                raise _inconsistent(tokenizer, prompt, whole)
            if answer != PROBE and known and not before.removeprefix(known[0]).strip():
                continue  # white space of the answer's own
            known = known or (before, (prompt, whole))
            if before != known[0]:
                raise _inconsistent(tokenizer, *known[1], prompt, whole)
    return known[0] if known else ""


def _from_question(text: str) -> str:
    """A conversation from its last question on.

    A prompt is rendered as at inference in any case; what is before that question may depend on who
    has the last turn (Mistral's system turn stands only before the last user's, say).
    """
    return text[max(0, text.rfind(ASKED)) :]


def _before(prompt: str, whole: str) -> str | None:
    """Text between a prompt and the probe in `whole`; None if that does not go on from the prompt.

    Thoughts at the end of a prompt may be missing in `whole`, where templates leave them out: an
    open block is then closed, as they do elsewhere.
    """
    thoughts = _thoughts_at_end(prompt)
    goes_on = whole.startswith(prompt)
    asked = prompt if goes_on else prompt.removesuffix(thoughts)
    before, probe, _ = whole.removeprefix(asked).partition(PROBE)
    if not probe or not whole.startswith(asked):
        return None
    if goes_on:
        return before
    if not thoughts or BLOCK.sub("", before).strip():
        return None
    if _is_closed(thoughts):
        return ""
    mark = opening_mark(thoughts)
    close, empty = TRACES[mark], f"{mark}\n\n{TRACES[mark]}\n\n"  # as hybrid models have it
    if close in before:
        return close + before.partition(close)[2]
    return empty.removeprefix(thoughts) if empty.startswith(thoughts) else f"{close}\n\n"


def _before_thoughts(
    tokenizer: PreTrainedTokenizerBase, rendering: Rendering, prompt: str | None, before: str
) -> str:
    """What is before an answer with reasoning, which some templates write in another way."""
    mark = opening_mark(prompt or "") or OPEN
    thoughts = f"{mark}\n{PROBE}\n{TRACES.get(mark, CLOSE)}\n\n"
    whole = whole_text(tokenizer, [*QUESTION, _says("assistant", thoughts + PROBE)], rendering)
    if prompt and whole and whole.startswith(prompt):
        found, told, _ = whole.removeprefix(prompt).partition(mark)
        if told:
            return found
    return "" if _is_closed(before) else before


def _continuing(tokenizer: PreTrainedTokenizerBase, prompt: str | None, before: str) -> bool:
    r"""Whether the joint text has the ids of an answer that goes on without a space of its own.

    After "<|assistant|>\n" that space would be a stray one.
    """
    if prompt is None or not puts_space_first(tokenizer):
        return False
    answer = before + PROBE
    joint, alone = tokenizer([prompt + answer, prompt], add_special_tokens=False)["input_ids"]
    ids = Encoder(tokenizer, continuing=True).encode([answer]).tokens.tolist()
    return joint[: len(alone) + len(ids)] == [*alone, *ids]


def _inconsistent(tokenizer: PreTrainedTokenizerBase, *texts: str) -> UserError:
    shown = "\n".join(
        f"  {what}: {text!r}"
        for what, text in zip(("prompt", "with an answer") * 2, texts, strict=False)
    )
    return UserError(
        f"{tokenizer.name_or_path}: the chat template does not render an answer behind the prompt "
        f"that it renders without one, so that nothing could be trained as it is asked:\n{shown}\n"
        "Mend the template: with add_generation_prompt a conversation must begin as the same one "
        "with its answer does. Or give the template's arguments with which it does "
        "(student.template)"
    )


def end_of_turn(tokenizer: PreTrainedTokenizerBase, rendering: Rendering = PLAIN) -> int:
    """Find the id with which the chat template ends an assistant's turn, else the tokenizer's EOS.

    The two differ for Gemma, for example, whose turns end with <end_of_turn> and not with <eos>.

    Args:
        tokenizer: Has the chat template.
        rendering: Arguments and day of the template.
    """
    whole = whole_text(tokenizer, [*QUESTION, _says("assistant", PROBE)], rendering) or ""
    after = whole.rpartition(PROBE)[2].lstrip()
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    found = max((token for token in added if after.startswith(token)), key=len, default=None)
    return tokenizer.eos_token_id if found is None else tokenizer.convert_tokens_to_ids(found)
