"""An evaluator: the prompt of a judge and how its replies are read, as alpaca_eval publishes them.

A win rate is comparable only if the prompt is the same to the letter, so it is read from the
package alpaca_eval (its folder evaluators_configs) and never rewritten here. The package need not
be importable for that, only installed. A file of one's own in the same format does too.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from deltalearn.errors import UserError
from deltalearn.judge.replies import reading_problems
from deltalearn.records import ROLES, Message

PUBLISHED = "weighted_alpaca_eval_gpt4_turbo"  # of the AlpacaEval 2 leaderboard
PLACES = ("instruction", "output_1", "output_2")
START, END = "<|im_start|>", "<|im_end|>"
DEFAULT_PARSER = "regex_parser"


@dataclass(frozen=True)
class Evaluator:
    """One judge's prompt and reading.

    Attributes:
        name: In alpaca_eval, or in the file of one's own.
        messages: Of the template, with the places {instruction}, {output_1} and {output_2}.
        model: For whom it was published.
        settings: Of a request (max_tokens, temperature, logprobs, ...).
        decoder: alpaca_eval's name for the API of the judge.
        parser: How a reply is read, with the keyword arguments `options`.
        swaps: Whether the order of the two responses is drawn.
        prompt: SHA-256 of the template.
        version: Of alpaca_eval, "" for a file of one's own.
    """

    name: str
    messages: tuple[Message, ...]
    model: str
    settings: Mapping[str, Any]
    decoder: str
    parser: str
    options: Mapping[str, Any]
    swaps: bool
    prompt: str
    version: str


def load_evaluator(name: str | Path = PUBLISHED) -> Evaluator:
    """The evaluator of this name in alpaca_eval, or in a YAML file of one's own.

    UserError if it is not there, or does what is not supported (several comparisons in one prompt,
    replies that are read by something else than log-probabilities).
    """
    if Path(name).is_file():
        return _read(Path(name), "")
    folder, version = _package()
    known = {path.parent.name: path for path in folder.glob("*/configs.yaml")}
    if str(name) not in known:
        usable = sorted(n for n, path in known.items() if "logprob_parser" in path.read_text())
        raise UserError(
            f"{name}: neither a file nor an evaluator of alpaca_eval; it has {', '.join(usable)}"
        )
    return _read(known[str(name)], version)


def parse_template(text: str) -> tuple[Message, ...]:
    """Messages of a template, split as alpaca_eval does; without marks, one turn of the user."""
    text = text.strip()
    if not text.startswith(START):
        return (Message(role="user", content=text),)
    messages = []
    for turn in text.split(START)[1:]:
        role, _, rest = turn.partition("\n")
        if role.strip() not in ROLES:
            raise UserError(f"a judge's prompt has a turn of {role.strip()!r}; known: {ROLES}")
        messages.append(Message(role=role.strip(), content=rest.split(END, 1)[0].strip()))
    return tuple(messages)


def _package() -> tuple[Path, str]:
    """(evaluators_configs, version) of the installed package; it is not imported."""
    spec = importlib.util.find_spec("alpaca_eval")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the judge's prompt is taken from the package alpaca_eval, which is not installed; "
            "pip install alpaca_eval, or give annotations that exist"
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "evaluators_configs"
    return folder, importlib.metadata.version("alpaca_eval")


def _read(path: Path, version: str) -> Evaluator:
    import yaml

    try:
        ((name, config),) = yaml.safe_load(path.read_text(encoding="utf-8")).items()
        template = _template(path, config["prompt_template"])
        settings = dict(config.get("completions_kwargs") or {})
        model = str(settings.pop("model_name"))
    except (OSError, yaml.YAMLError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"{path}: not the configuration of one evaluator ({type(error).__name__}: {error}); "
            "see the files configs.yaml of alpaca_eval"
        ) from None
    parser = config.get("fn_completion_parser") or DEFAULT_PARSER
    options = config.get("completion_parser_kwargs") or {}
    problems = reading_problems(parser, options)
    if config.get("batch_size", 1) != 1:
        problems.append("several comparisons in one prompt are not supported")
    if "trust_remote_code" in str(settings):
        problems.append("it would run code that comes with a model")
    places = re.findall(r"{([^ \s]+?)}", template)  # as alpaca_eval finds them
    if sorted(places) != sorted(PLACES):
        problems.append(f"its prompt has the places {places}; each of {PLACES} is needed once")
    if problems:
        raise UserError(
            f"{path}: {problems[0]}; use another evaluator, or give annotations that exist"
        )
    return Evaluator(
        name=str(name),
        messages=parse_template(template),
        model=model,
        settings=settings,
        decoder=config.get("fn_completions") or "openai_completions",
        parser=parser,
        options=options,
        swaps=config.get("is_randomize_output_order", True),
        prompt=sha256(template.encode()).hexdigest(),
        version=version,
    )


def _template(config: Path, name: str) -> str:
    """The text of a template, whose name is relative to the folder above the configuration's."""
    for folder in (config.parent.parent, config.parent):
        if (folder / name).is_file():
            return (folder / name).read_text(encoding="utf-8")
    raise ValueError(f"there is no file {name}")
