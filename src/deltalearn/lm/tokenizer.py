"""A tokenizer is what its file says: transformers' reading of it is compared, and corrected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from deltalearn.errors import UserError
from deltalearn.lm.locate import ModelFiles
from deltalearn.util.files import write_text
from deltalearn.util.progress import console

FILE = "tokenizer.json"
PLAIN_CLASS = "PreTrainedTokenizerFast"  # by this name transformers 4 knows it, too
# Texts that pre-tokenizers, normalizers and decoders of the families treat differently.
PROBES = (
    "It is 12345 now, or 3.14159 and 1,000,000; in 2024?",
    "two  spaces,   three\tand\ta tab; trailing ",
    " leading\n\nblank lines\r\n\n\n  indented\n",
    "I'm sure they'll say we've DON'T, it's o'clock; isn’t it?",
    "def f(x_1):\n    return {'a': [x_1**2, -1e-3]} != None  # TODO\n",
    "snake_case camelCase UPPER http://example.org/a?b=c&d=%20 a@b.c",
    "Größe naïve café Ångström ﬁ ½ ①",  # composed
    "Gro\u0308ße nai\u0308ve cafe\u0301 A\u030angstro\u0308m",  # decomposed
    "你好，世界！ こんにちは ｶﾀｶﾅ 안녕하세요",
    "Привет, мир. שלום عالم नमस्ते สวัสดี",
    "🙂🚀 👩‍👩‍👧 🇩🇪 \u200bzero\u00a0width\ufeff",
    "<b>not</b> a [token] <|nor|> this </s",
)
SPECIAL = ("bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token")
CONTROL_TOKENS = 64  # of the file's added tokens, tried between words

_said: set[Path] = set()


def read_tokenizer(files: ModelFiles) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a model so that it gives the ids that its file says.

    transformers builds some classes anew from the vocabulary, with a pre-tokenizer of their own:
    other ids than the model was trained on. Where ids or decoded texts differ from what the library
    tokenizers makes of tokenizer.json, the file itself is used and a line says so. Without that
    file transformers decides.

    Args:
        files: The model's files.

    Returns:
        The tokenizer.

    Raises:
        UserError: If it does not load, or if it cannot be made to agree with its file.
    """
    directory = files.tokenizer_directory
    found, refused = _by_class(directory)
    if not (directory / FILE).exists():
        if found is None:
            raise _unreadable(files, refused) from refused
        return found
    try:
        file = file_tokenizer(directory)
    except Exception as error:  # tokenizers raises the bare class
        raise _unreadable(files, error) from error
    difference = str(refused) if found is None else first_difference(found, file)
    if difference is None:
        return found
    try:
        plain = _of_file(directory, found, file)
    except Exception as error:
        raise _unreadable(files, refused or error) from error
    if left := first_difference(plain, file):
        raise UserError(f"{files.name}: its tokenizer cannot be read as {FILE} says: {left}")
    if directory not in _said:
        _said.add(directory)
        what = "cannot be read" if found is None else f"is read otherwise by {type(found).__name__}"
        console.print(
            f"{files.name}: {FILE} {what} of transformers ({difference}); the file is followed",
            markup=False,
            soft_wrap=True,
        )
    return plain


def _by_class(directory: Path) -> tuple[PreTrainedTokenizerBase | None, Exception | None]:
    """The tokenizer as transformers makes it, or why it does not."""
    try:
        return AutoTokenizer.from_pretrained(directory, trust_remote_code=False), None
    except Exception as error:  # each class has its own kinds
        return None, error


def _unreadable(files: ModelFiles, error: Exception | None) -> UserError:
    text = " ".join(str(error).split())
    return UserError(f"{files.name}: the tokenizer does not load: {text}")


def name_class_by_file(directory: Path) -> None:
    """Let a tokenizer's settings name the class that reads its file as it is, if theirs does not.

    Args:
        directory: With a config, and a tokenizer that `read_tokenizer` has accepted.
    """
    settings = directory / "tokenizer_config.json"
    if not (directory / FILE).exists() or not settings.exists():
        return
    found, _ = _by_class(directory)
    if found is not None and first_difference(found, file_tokenizer(directory)) is None:
        return
    values = {**json.loads(settings.read_text(encoding="utf-8")), "tokenizer_class": PLAIN_CLASS}
    write_text(settings, json.dumps(values, indent=2, ensure_ascii=False) + "\n")


def file_tokenizer(directory: Path) -> Tokenizer:
    """Read tokenizer.json as the library tokenizers does, without its truncation and padding."""
    file = Tokenizer.from_file(str(directory / FILE))
    file.no_truncation()
    file.no_padding()
    return file


def first_difference(tokenizer: PreTrainedTokenizerBase, file: Tokenizer) -> str | None:
    """Compare a tokenizer with its file on probing texts, in both directions.

    Args:
        tokenizer: Of transformers.
        file: Of the library tokenizers.

    Returns:
        The first text with both ids, or the ids with both texts; None if there is no difference.
    """
    for text in (*PROBES, _control_text(file)):
        try:
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        except Exception as error:  # tokenizers raises the bare class
            return f"for {text!r} it fails: {error}"
        expected = file.encode(text, add_special_tokens=False).ids
        if ids != expected:
            at = next(
                (i for i, pair in enumerate(zip(ids, expected, strict=False)) if len({*pair}) > 1),
                min(len(ids), len(expected)),
            )
            return (
                f"for {text!r} the ids differ from number {at} on: {_shown(ids, at)} instead of "
                f"{_shown(expected, at)}"
            )
        back = tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if back != (meant := file.decode(ids, skip_special_tokens=False)):
            return f"ids of {text!r} decode to {back!r} instead of {meant!r}"
    return None


def _control_text(file: Tokenizer) -> str:
    tokens = sorted(token.content for token in file.get_added_tokens_decoder().values())
    return "a" + "b \n c".join(tokens[:CONTROL_TOKENS])


def _shown(ids: list[int], at: int) -> str:
    return f"[{', '.join(map(str, ids[at : at + 8]))}{', ...' if len(ids) > at + 8 else ''}]"


def _of_file(
    directory: Path, found: PreTrainedTokenizerBase | None, file: Tokenizer
) -> PreTrainedTokenizerBase:
    """The file's own tokenizer, with the special tokens and settings that transformers found."""
    kept: dict[str, Any] = {}
    for name in SPECIAL if found is not None else ():
        token = getattr(found, name)
        if token is not None and file.token_to_id(str(token)) is not None:
            kept[name] = token
    plain = PreTrainedTokenizerFast.from_pretrained(directory, trust_remote_code=False, **kept)
    if found is not None:
        plain.chat_template = found.chat_template
        plain.padding_side = found.padding_side
        plain.model_max_length = found.model_max_length
    return plain
