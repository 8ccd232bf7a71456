"""Protects answers from their neighbours: a batch gives what each prompt gives alone."""

from __future__ import annotations

import pytest
import torch
from helpers.architectures import tiny_config
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.decode import best_company, decode_within_context
from deltalearn.records import Sampling

GREEDY = Sampling(temperature=0.0, top_p=1.0, max_tokens=8)
COMPANY = {
    "llama": "any",
    "mamba": "any",
    "gemma3": "any",
    "bart": "equal",  # a table of positions that counts padding
    "recurrent_gemma": "equal",  # a state that reads it
    "rwkv": "none",
}


def build(kind: str, tokenizer, **changes):
    torch.manual_seed(0)
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    model = AutoModelForCausalLM.from_config(
        tiny_config(kind, len(tokenizer), bos_token_id=tokenizer.eos_token_id, **ends, **changes)
    ).eval()
    with torch.no_grad():  # wide weights, so that every earlier token shows in the result
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
    return model


@pytest.mark.parametrize("kind", COMPANY)
def test_a_batch_gives_what_each_prompt_gives_alone(kind, tiny_tokenizer):
    model = build(kind, tiny_tokenizer)
    prompts = [torch.randint(5, 300, (size,)).tolist() for size in (12, 3, 7, 7)]
    together = decode_within_context(model, tiny_tokenizer, prompts, GREEDY)
    alone = [decode_within_context(model, tiny_tokenizer, [p], GREEDY)[0] for p in prompts]
    assert together == alone
    assert best_company(model) == COMPANY[kind]


def test_what_transformers_cannot_generate_with_is_said_in_one_line(tiny_tokenizer):
    """Its cache has a place for every layer but not for every time that it is passed."""
    model = build("hrm_text", tiny_tokenizer)
    with pytest.raises(UserError, match=r"hrm_text: transformers .* does not generate") as error:
        decode_within_context(model, tiny_tokenizer, [[5, 6]], GREEDY)
    assert "\n" not in str(error.value) and "--url" in str(error.value)
