"""A chat template that a user chose for a model, in an ordinary directory of its own.

Base models have none, and no answer can be asked of a conversation without one. What was chosen is
put beside links to the model's files, so that everything that reads a model finds it there.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltalearn.errors import UserError
from deltalearn.lm.cached import made_directory
from deltalearn.util.files import write_text
from deltalearn.util.paths import local_path

if TYPE_CHECKING:
    from deltalearn.lm.locate import ModelFiles

FILE = "chat_template.jinja"
SETTINGS = "tokenizer_config.json"
OTHERS = ("chat_template.json", "additional_chat_templates", "made.json")
BOS = "{{ bos_token }}"


@dataclass(frozen=True)
class NamedTemplate:
    """A template that is known by name.

    Attributes:
        text: Of Jinja, without a BOS.
        tokens: Control tokens that it writes, which a tokenizer must have.
    """

    text: str
    tokens: tuple[str, ...] = ()


NAMED = {
    # ChatML as OpenAI described it: each turn between two control tokens.
    "chatml": NamedTemplate(
        "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' "
        "+ message['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}",
        ("<|im_start|>", "<|im_end|>"),
    ),
    # Nothing but the texts: an answer goes on where the question ends. What is not the question
    # (a system turn, an earlier answer) ends with an empty line.
    "raw": NamedTemplate(
        "{% for message in messages %}{{ message['content'] }}"
        "{% if message['role'] != 'user' and not loop.last %}{{ '\\n\\n' }}{% endif %}"
        "{% endfor %}"
    ),
}


def with_template(files: ModelFiles, chosen: str) -> tuple[Path, str]:
    """Find the directory of a model with a chosen chat template, or make it.

    Args:
        files: The model.
        chosen: A name in `NAMED`, or a file of Jinja.

    Returns:
        (the directory, its fingerprint).

    Raises:
        UserError: If there is no such template, if the tokenizer lacks its tokens, or if the model
            is an adapter.
    """
    if files.adapter is not None:
        raise UserError(
            f"{files.name}: is an adapter, whose chat template is that of the model it belongs to; "
            f"leave chat_template out, or put the template beside it as {FILE}"
        )
    text = NAMED[chosen].text if chosen in NAMED else _read(files.name, chosen)
    content = {"model": files.fingerprint, "chat_template": text}
    source = files.directory.resolve()

    def make(directory: Path) -> None:
        whole = text
        if chosen in NAMED:
            whole = _begun(files, chosen)
        for path in source.iterdir():
            if path.name not in (FILE, SETTINGS, *OTHERS):
                (directory / path.name).symlink_to(path)
        write_text(directory / FILE, whole)
        if (source / SETTINGS).exists():
            values = json.loads((source / SETTINGS).read_text(encoding="utf-8"))
            values.pop("chat_template", None)
            write_text(directory / SETTINGS, json.dumps(values, indent=2, ensure_ascii=False))

    return made_directory(files.name, content, make, str(source))


def _read(name: str, chosen: str) -> str:
    path = local_path(chosen)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{name}: chat_template {chosen} is neither {' nor '.join(NAMED)} nor a file of Jinja "
            f"that can be read ({error})"
        ) from error
    if not text.strip():
        raise UserError(f"{name}: chat_template {chosen} is an empty file")
    return text


def _begun(files: ModelFiles, chosen: str) -> str:
    """The template of a name, with BOS where the tokenizer begins plain texts with it."""
    from deltalearn.lm.tokenizer import read_tokenizer

    tokenizer, template = read_tokenizer(files), NAMED[chosen]
    known = {str(token) for token in tokenizer.added_tokens_decoder.values()}
    if missing := [token for token in template.tokens if token not in known]:
        raise UserError(
            f"{files.name}: chat_template {chosen} writes {' and '.join(missing)}, which the "
            "tokenizer does not have as tokens, so no answer could end; use raw, or a file with a "
            "template of your own"
        )
    ids = tokenizer("a")["input_ids"]
    begins = tokenizer.bos_token_id is not None and ids[:1] == [tokenizer.bos_token_id]
    return (BOS if begins else "") + template.text
