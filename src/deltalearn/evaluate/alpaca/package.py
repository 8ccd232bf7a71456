"""Ask through alpaca_eval's own clients (its `decoders`: OpenAI, Anthropic, Cohere, vLLM, ...).

Prompt, order, cache and reading stay ours; only the request is the package's. Keys and addresses
are where it looks for them (its environment variables and client_configs).
"""

from __future__ import annotations

from collections.abc import Sequence

from deltalearn.errors import UserError
from deltalearn.evaluate.alpaca.annotate import Ask
from deltalearn.evaluate.alpaca.evaluator import END, START
from deltalearn.evaluate.alpaca.judge import Judge
from deltalearn.evaluate.alpaca.reading import Reply
from deltalearn.records import Message


def ask_with_package(judge: Judge) -> Ask:
    """A function that asks `judge` through alpaca_eval. UserError if that cannot be imported."""
    try:
        from alpaca_eval.decoders import get_fn_completions

        complete = get_fn_completions(judge.evaluator.decoder)
    except ImportError as error:
        raise UserError(
            f"alpaca_eval cannot be used here ({error}); pip install alpaca_eval 'setuptools<81' "
            "(it needs pkg_resources), and the client of the judge's provider"
        ) from None

    def ask(conversations: list[list[Message]]) -> Sequence[Reply]:
        prompts = [prompt_text(c, chat=judge.evaluator.chat) for c in conversations]
        done = complete(prompts=prompts, model_name=judge.model, **judge.settings)
        return [_reply(whole) for whole in done.get("completions_all") or done["completions"]]

    return ask


def prompt_text(conversation: list[Message], *, chat: bool) -> str:
    """A conversation as the package wants it: one text, its turns marked if it is a chat.

    The texts inside were defused by `Judge.conversation`; no mark of theirs opens a turn.
    """
    if not chat:
        return conversation[0]["content"]
    return "\n".join(f"{START}{m['role']}\n{m['content']}\n{END}" for m in conversation)


def _reply(whole: object) -> Reply:
    if isinstance(whole, str):
        return Reply(whole)
    if isinstance(whole, dict) and "message" in whole:
        return Reply.from_choice(whole)
    if isinstance(whole, dict) and whole.get("text"):
        return Reply(str(whole["text"]))
    return Reply("", error="no reply after all tries of alpaca_eval")
