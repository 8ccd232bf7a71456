"""Protects every causal model type of transformers: no traceback, and no other numbers.

What docs/tuning.md says of a type is what happens: rows, adapters, batches of prompts. Log-probs
are held to a plain loop in `architecture_sweep`. DELTALEARN_ARCHITECTURES=all tries all types (ten
minutes); otherwise one of each row of the table, and a few more.
"""

from __future__ import annotations

import os
import random

import pytest
import transformers
from helpers.architecture_sweep import DOCS, Outcome, outcome, read_table
from helpers.architectures import MODEL_TYPES
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES

OF_THE_PAGE = "5.23."
MORE = 5  # besides one of each kind
SLOW = {"rwkv"}  # half a minute
TABLE = read_table(DOCS.read_text())


def tried() -> list[str]:
    """One type of each row of the table and some of the others, or all."""
    here = [name for name in MODEL_TYPES if name in TABLE]
    if os.environ.get("DELTALEARN_ARCHITECTURES") == "all":
        return here
    here = [name for name in here if name not in SLOW]
    random.Random(0).shuffle(here)
    one_each = {TABLE[name]: name for name in here}
    return sorted({*one_each.values(), *here[:MORE]})


@pytest.mark.slow
@pytest.mark.parametrize("name", tried())
def test_a_type_fares_as_the_page_says(name, tmp_path, tiny_tokenizer):
    found, told = outcome(name, tmp_path, tiny_tokenizer), TABLE[name]
    if found.tune == told.tune == "not built" and not transformers.__version__.startswith(
        OF_THE_PAGE
    ):
        return  # with another error of another version
    assert found == told


def test_the_page_has_every_type_that_transformers_had():
    assert len(TABLE) >= 180
    if transformers.__version__.startswith(OF_THE_PAGE):
        assert set(TABLE) <= set(CONFIG_MAPPING_NAMES) | set(MODEL_TYPES)
    assert {found.tune for found in TABLE.values()} == {"shared", "padded", "refused", "not built"}
    known = Outcome("shared", "yes", "any")
    assert all(TABLE[name] == known for name in ("llama", "qwen2", "qwen3", "olmo2", "mistral"))
    assert TABLE["gpt_oss"].tune == "padded"
