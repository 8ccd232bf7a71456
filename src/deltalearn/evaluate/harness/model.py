"""A model of lm_eval that remembers: what is known is read, the rest is asked a few at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from deltalearn.errors import UserError
from deltalearn.evaluate.harness.cache import Answers
from deltalearn.evaluate.harness.served import Server
from deltalearn.evaluate.harness.wanted import REASONING
from deltalearn.evaluate.reply import Reply, reply_notes
from deltalearn.evaluate.room import reasoning_note
from deltalearn.lm.control import AnswerReader
from deltalearn.util.files import digest
from deltalearn.util.progress import Bar, progress
from deltalearn.util.signals import SafeStop

if TYPE_CHECKING:
    from deltalearn.evaluate.harness.prompts import Prompts

GROUP_SIZE = 128  # requests of one call; one commit, but of servers, whose answers come singly
STEP = 64  # tokens: answers that the context limits are grouped by their limit rounded down


@dataclass
class RequestIssues:
    """Numbers of requests that did not fit or got no text."""

    shortened: int = 0  # answers whose limit the context lowered
    truncated: int = 0  # prompts that lose their beginning
    unanswered: int = 0  # replies of a server without any text
    faults: list[str | None] = field(default_factory=list)  # of each reply; see `Reply`
    reasoned: int = 0  # replies with reasoning
    room: int = 0  # tokens that they had for it beyond the limit

    def notes(self) -> list[str]:
        """Lines for the results."""
        told = [
            (self.shortened, "the context left {:,} answers less than the limit"),
            (self.truncated, "{:,} prompts were cut on the left to fit the context"),
            (self.unanswered, "the server gave no text for {:,} requests (content null): they "
             "count as empty answers, and the next run asks them again"),
        ]  # fmt: skip
        lines = [line.format(n) for n, line in told if n]
        lines += reasoning_note(self.reasoned, len(self.faults), self.room)
        return lines + reply_notes(self.faults)


@dataclass
class CachedLM:
    """Wraps a model of lm_eval for `lm_eval.evaluator.evaluate`, and asks it nothing twice.

    The same request asked n times is n samples, each with an answer of its own. Sampled requests
    are seeded by their content, so that an interrupted run goes on as an uninterrupted one would.

    Attributes:
        inner: The model of lm_eval.
        identity: Of the model's content and back-end.
        answers: What it has answered before.
        server: Who asks, where the model is behind one.
        chat: Renders conversations; None: a server does.
        group_size: Requests of one call, which a kill may cost; of a server those in flight alone.
        reasoning_tokens: That reasoning may take beyond a benchmark's limit, of a model that may.
        before: Called before anything is asked, and not if everything is known.
    """

    inner: Any
    identity: str
    answers: Answers
    title: str = ""
    server: Server | None = None
    chat: Prompts | None = None
    group_size: int = GROUP_SIZE
    before: Callable[[], None] = lambda: None
    reasoning_tokens: int = 0
    issues: RequestIssues = field(default_factory=RequestIssues)

    rank = 0
    world_size = 1

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, for lm_eval's own records."""
        return str(getattr(self.inner, "tokenizer_name", ""))

    def apply_chat_template(
        self, history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> Any:
        """A conversation as the inner model takes it; without a new turn its last one is begun."""
        if self.chat is None:
            return self.inner.apply_chat_template(
                history, add_generation_prompt=add_generation_prompt
            )
        if add_generation_prompt:
            return self.chat.text(history)
        *asked, begun = history
        return self.chat.text(asked, begun["content"])

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy) of each continuation."""
        for request in requests:
            self._note_length(*request.args)
        found = self._answered("loglikelihood", requests, [request.args for request in requests])
        return [(float(value), bool(greedy)) for value, greedy in found]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer to each request, as `Reply`: what is graded, and what stands beside it."""
        fitted = [self._fit(*request.args) for request in requests]
        replies = [Reply.read(v) for v in self._answered("generate_until", requests, fitted)]
        self.issues.faults += [reply.fault for reply in replies]
        self.issues.reasoned += sum(bool(reply.reasoning) for reply in replies)
        self.issues.room = self._room
        return list(replies)

    # -- asking ------------------------------------------------------------------------------

    def _answered(
        self, kind: str, requests: list[Any], arguments: Sequence[tuple[Any, ...]]
    ) -> list[Any]:
        """Answers in the order of the requests; those that are not known are asked."""
        keys = self._keys(kind, arguments)
        known = self.answers.get(keys)
        # Similar lengths together, as batches want them; groups are the same after an interruption.
        order = sorted(range(len(keys)), key=lambda i: (-len(arguments[i][0]), arguments[i][0], i))
        title = f"evaluate {self.title}"
        if any(key not in known for key in keys):
            self.before()
        with (
            SafeStop() as stop,
            progress(title, total=len(keys), done=len(known), unit="requests") as bar,
        ):
            # A server's answers are kept one by one: nothing is gained by waiting for a group.
            size = self.group_size if self.server is None else max(1, len(order))
            for at in range(0, len(order), size):
                group = order[at : at + size]
                part = {
                    keys[i]: replace(requests[i], arguments=_seeded(arguments[i], keys[i]))
                    for i in group
                    if keys[i] not in known
                }
                if part and not stop.asked:
                    if self.server is None:
                        known |= self._ask(kind, part, bar)
                    else:
                        known |= self._ask_server(self.server, kind, part, lambda: stop.asked, bar)
                if part.keys() - known.keys():
                    stop.leave(f"{title}: stopped, {len(known):,} of {len(keys):,} requests done")
        return [known[key] for key in keys]

    def _ask(self, kind: str, part: dict[str, Any], bar: Bar) -> dict[str, Any]:
        """Values by key, of a model that is here."""
        values = getattr(self.inner, kind)(list(part.values()), disable_tqdm=True)
        new = dict(zip(part, map(_kept, values), strict=True))
        self.answers.add(new)
        bar.advance(len(new), amount=len(new))
        return new

    def _ask_server(
        self,
        server: Server,
        kind: str,
        part: dict[str, Any],
        stopped: Callable[[], bool],
        bar: Bar,
    ) -> dict[str, Any]:
        """Values by key, each in the file as soon as it is here; fewer if `stopped`.

        What came without text is an empty answer now, and not in the file: it is asked again.
        """
        keys = list(part)
        values: dict[str, Any] = {}

        def keep(at: int, value: Any) -> None:
            bar.advance(1, amount=1)
            if value is None:
                self.issues.unanswered += 1
                values[keys[at]] = ""
                return
            value = _kept(value)
            values[keys[at]] = value
            self.answers.add({keys[at]: value})

        server.ask(kind, [request.args for request in part.values()], keep, stopped)
        return values

    def _keys(self, kind: str, arguments: Sequence[tuple[Any, ...]]) -> list[str]:
        """A key for each request; the same request again gets another one."""
        seen: Counter[str] = Counter()
        keys = []
        for values in arguments:
            content = digest({"model": self.identity, "kind": kind, "arguments": list(values)})
            keys.append(f"{content}/{seen[content]}")
            seen[content] += 1
        return keys

    # -- fitting -----------------------------------------------------------------------------

    def _fit(self, context: str, options: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """The request with a limit that the context can hold.

        lm_eval would cut the prompt to make room for an answer of the full length, or refuse. Where
        the model may reason the limit is the answer's, and its reasoning has room of its own.
        """
        room = self._context
        limit = options.get("max_gen_toks")
        if limit is None:
            return context, options
        if self._room:
            options = {**options, REASONING: self._room}
        if room is None:
            return context, options
        left = room - len(self.inner.tok_encode(context))
        if left >= limit + self._room:
            return context, options
        self.issues.shortened += 1
        if room <= STEP:
            raise UserError(
                f"its context of {room} tokens is too short for a prompt and an answer of {STEP}"
            )
        if left < STEP:  # the prompt itself does not fit: an answer of some length is made room for
            self.issues.truncated += 1
            left = STEP
        left = left // STEP * STEP
        fitted = {**options, "max_gen_toks": min(limit, left)}
        return context, fitted | ({REASONING: max(0, left - limit)} if self._room else {})

    def _note_length(self, context: str, continuation: str) -> None:
        if self._context is None:
            return
        tokens = sum(len(self.inner.tok_encode(text)) for text in (context, continuation))
        self.issues.truncated += tokens > self._context

    @cached_property
    def _room(self) -> int:
        """Tokens for reasoning; none of a model whose tokenizer knows no marks of it."""
        tokenizer = getattr(self.inner, "tokenizer", None)
        if self.reasoning_tokens and hasattr(tokenizer, "added_tokens_decoder"):
            return self.reasoning_tokens * AnswerReader(tokenizer).reasons
        return self.reasoning_tokens

    @property
    def _context(self) -> int | None:
        """Tokens, where the inner model knows and can count them."""
        if getattr(self.inner, "tokenizer", None) is None:
            return None
        return getattr(self.inner, "max_length", None)


def _seeded(values: tuple[Any, ...], key: str) -> tuple[Any, ...]:
    """A request with a seed of its own, if it is sampled.

    lm_eval sends all the same one, and a prompt sampled twenty times would get one answer twenty
    times.
    """
    context, options = values
    if not isinstance(options, dict) or not options.get("do_sample"):
        return values
    return context, {**options, "seed": int(digest(key)[:7], 16)}


def _kept(value: Any) -> Any:
    """A model's value as JSON has it."""
    return value.kept() if isinstance(value, Reply) else value
