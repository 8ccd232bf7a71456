"""Protects models that cap their attention scores from an attention that leaves the cap out.

transformers before 5.21 chooses torch's own attention for them.
"""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from deltalearn.lm.load import keep_caps, load_model
from deltalearn.lm.locate import locate
from deltalearn.lm.transformers_private import attention_name

IDS = torch.arange(2, 26).reshape(2, 12)
CAP = 0.5  # at which most scores of a model with wide weights are cut


def wide(kind: str, tokenizer, **settings):
    config = AutoConfig.for_model(
        kind, vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, head_dim=8,
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, pad_token_id=None,
        bos_token_id=None, eos_token_id=tokenizer.eos_token_id, **settings,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@torch.no_grad()
def logits(model, attention: str) -> torch.Tensor:
    model.set_attn_implementation(attention)
    return model.eval()(input_ids=IDS, use_cache=False).logits


@pytest.mark.parametrize("kind", ["gemma2", "vaultgemma"])
def test_what_is_loaded_caps_its_scores(kind, tmp_path, tiny_tokenizer, cpu):
    model = wide(kind, tiny_tokenizer, attn_logit_softcapping=CAP)
    model.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    loaded = load_model(locate(str(tmp_path)), cpu)
    used = logits(loaded, attention_name(loaded))
    assert torch.equal(used, logits(model, "eager"))
    model.config.attn_logit_softcapping = None
    for layer in model.model.layers:
        layer.self_attn.attn_logit_softcapping = None
    assert (used - logits(model, "eager")).abs().max() > 0.1  # the cap is seen


def test_lm_evals_own_model_caps_its_scores(tmp_path, tiny_tokenizer):
    from deltalearn.evaluate.harness.backends import BackendOptions, load

    wide("gemma2", tiny_tokenizer, attn_logit_softcapping=CAP).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    how = {"model": str(tmp_path), "kind": "hf", "dtype": "float32", "device": "cpu"}
    found = [load(BackendOptions(**how, options=o)).model for o in ({}, {"parallelize": False})]
    assert torch.equal(*(logits(model, attention_name(model)) for model in found))


def test_a_model_without_caps_keeps_its_attention(tiny_tokenizer):
    model = wide("llama", tiny_tokenizer)
    model.set_attn_implementation("sdpa")
    keep_caps(model)
    assert attention_name(model) == "sdpa"
