"""A model of lm_eval that remembers: what is known is read, the rest is asked a few at a time."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from deltalearn.evaluate.harness.answers import Answers
from deltalearn.files import digest
from deltalearn.progress import progress
from deltalearn.stopping import SafeStop

AT_ONCE = 128  # requests of one call, and of one commit
SERVER_STOPS = 3  # of the four that the API takes; lm_eval adds the end of the turn
STEP = 64  # tokens: answers that the context limits are grouped by their limit rounded down


@dataclass
class Trouble:
    """What did not fit, counted in requests."""

    shortened: int = 0  # answers whose limit the context lowered
    truncated: int = 0  # prompts that lose their beginning

    def notes(self) -> list[str]:
        """Lines for the results."""
        lines = []
        if self.shortened:
            lines.append(f"the context left {self.shortened:,} answers less than the limit")
        if self.truncated:
            lines.append(f"{self.truncated:,} prompts were cut on the left to fit the context")
        return lines


@dataclass
class RememberingModel:
    """What `lm_eval.evaluator.evaluate` takes as a model; wraps one of lm_eval's.

    identity: of the model's content and back-end. server: whether it is asked as
    servers are. The same request asked n times is n samples, each
    with an answer of its own. Sampled requests are seeded by their content, so that an interrupted
    run goes on as an uninterrupted one would have.
    """

    inner: Any
    identity: str
    answers: Answers
    title: str = ""
    server: bool = False
    trouble: Trouble = field(default_factory=Trouble)

    rank = 0
    world_size = 1

    @property
    def tokenizer_name(self) -> str:
        """As lm_eval wants it."""
        return str(getattr(self.inner, "tokenizer_name", ""))

    def apply_chat_template(self, history: list[dict[str, str]], **options: Any) -> Any:
        """The inner model's."""
        return self.inner.apply_chat_template(history, **options)

    def loglikelihood(self, requests: list[Any]) -> list[tuple[float, bool]]:
        """(log-likelihood, whether greedy) of each continuation."""
        for request in requests:
            self._note_length(*request.args)
        found = self._answered("loglikelihood", requests, [request.args for request in requests])
        return [(float(value), bool(greedy)) for value, greedy in found]

    def generate_until(self, requests: list[Any]) -> list[str]:
        """The answer to each request."""
        fitted = [self._fit(*request.args) for request in requests]
        return [str(text) for text in self._answered("generate_until", requests, fitted)]

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
        with (
            SafeStop() as stop,
            progress(title, total=len(keys), done=len(known), unit="requests") as bar,
        ):
            for at in range(0, len(order), AT_ONCE):
                group = order[at : at + AT_ONCE]
                missing = [i for i in group if keys[i] not in known]
                if not missing:
                    continue
                if stop.asked:
                    stop.leave(f"{title}: stopped, {len(known):,} of {len(keys):,} requests done")
                values = self._ask(kind, [requests[i] for i in missing], arguments, missing, keys)
                new = {keys[i]: value for i, value in zip(missing, values, strict=True)}
                self.answers.add(new)
                known |= new
                bar.advance(len(missing), amount=len(missing))
        return [known[key] for key in keys]

    def _ask(
        self,
        kind: str,
        requests: list[Any],
        arguments: Sequence[tuple[Any, ...]],
        missing: list[int],
        keys: list[str],
    ) -> list[Any]:
        fitted = [
            replace(request, arguments=self._for_server(arguments[i], keys[i]))
            for request, i in zip(requests, missing, strict=True)
        ]
        _seed(keys[missing[0]])
        values = getattr(self.inner, kind)(fitted, disable_tqdm=True)
        if not self.server or kind != "generate_until":
            return values
        stops = [arguments[i][1]["until"] for i in missing]
        return [_cut(text, until) for text, until in zip(values, stops, strict=True)]

    def _for_server(self, values: tuple[Any, ...], key: str) -> tuple[Any, ...]:
        """The request as a server takes it.

        With a seed of its own: lm_eval sends all the same one, and a prompt sampled twenty times
        would get one answer twenty times. With few enough stop strings; the answer is cut at the
        others when it is here.
        """
        context, options = values
        if not self.server or not isinstance(options, dict):
            return values
        options = {**options, "until": options["until"][:SERVER_STOPS]}
        if options.get("do_sample"):
            options["seed"] = int(digest(key)[:7], 16)
        return context, options

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

        lm_eval would cut the prompt to make room for an answer of the full length, or refuse.
        """
        room = self._context
        limit = options.get("max_gen_toks")
        if room is None or limit is None:
            return context, options
        left = room - len(self.inner.tok_encode(context))
        if left >= limit:
            return context, options
        self.trouble.shortened += 1
        if left < STEP:  # the prompt itself does not fit: an answer of some length is made room for
            self.trouble.truncated += 1
            return context, {**options, "max_gen_toks": min(limit, STEP)}
        return context, {**options, "max_gen_toks": left // STEP * STEP}

    def _note_length(self, context: str, continuation: str) -> None:
        if self._context is None:
            return
        tokens = sum(len(self.inner.tok_encode(text)) for text in (context, continuation))
        self.trouble.truncated += tokens > self._context

    @property
    def _context(self) -> int | None:
        """Tokens, where the inner model knows and can count them."""
        if getattr(self.inner, "tokenizer", None) is None:
            return None
        return getattr(self.inner, "max_length", None)


def _cut(text: str, stops: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    return text[: min((at for s in stops if (at := text.find(s)) >= 0), default=None)]


def _seed(key: str) -> None:
    import torch

    torch.manual_seed(int(key[:15], 16))
