"""Protects against a torch, transformers or accelerate that moved what it keeps private.

Every touch of a private part is in `lm/torch_private.py`, `lm/transformers_private.py` or
`util/distributed.py`. If one of these tests fails after an upgrade, that file is where to mend it.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from transformers import LlamaConfig, LlamaForCausalLM

import deltalearn
from deltalearn.lm import torch_private, transformers_private
from deltalearn.util.distributed import reset_precision

SOURCE = Path(deltalearn.__file__).parent
ROOMS = ("lm", "tune", "generate", "responses", "pairs", "prompts", "theory", "lab", "util")


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=32, hidden_size=16, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def test_flash_attention_gives_outputs_log_sum_exps_and_gradients():
    q, k, v = torch.randn(3, 1, 2, 5, 8, dtype=torch.float64).unbind()
    output, sums = torch_private.flash_attention(q, k, v, is_causal=True, scale=0.3)
    masked = (0.3 * q @ k.transpose(-1, -2)).masked_fill(
        torch.ones(5, 5, dtype=torch.bool).triu(1), float("-inf")
    )
    torch.testing.assert_close(sums, masked.logsumexp(-1))
    torch.testing.assert_close(output, masked.softmax(-1) @ v)
    ones = torch.ones_like(output)
    gradients = torch_private.flash_attention_backward(
        ones, q, k, v, output, sums, 0.0, True, scale=0.3
    )
    torch.testing.assert_close(gradients[2], masked.softmax(-1).transpose(-1, -2) @ ones)


def test_softmax_overwrites_its_input():
    logits = torch.randn(3, 7)
    expected = logits.softmax(-1)
    torch_private.softmax_in_place(logits)
    torch.testing.assert_close(logits, expected)


def test_a_view_knows_its_buffer_and_a_fake_storage_its_identity():
    flat = torch.empty(12)
    assert torch_private.whole_buffer(flat[:6].view(2, 3)) is flat
    with torch_private.FakeTensorMode():
        one, other = torch.empty(4), torch.empty(4)
        ids = [torch_private.storage_id(t.untyped_storage()) for t in (one, one.view(2, 2), other)]
    assert ids[0] == ids[1] != ids[2]


def test_what_a_model_of_transformers_tells_of_itself(model):
    model.set_attn_implementation("eager")
    assert transformers_private.attention_name(model) == "eager"
    assert transformers_private.takes_attention_functions(model)
    assert not transformers_private.carries_state(model)
    assert transformers_private.layer_classes(model) == ("LlamaDecoderLayer",)


def test_weights_in_fp8_need_no_plan_of_their_experts():
    """transformers 5.16 looks one up and has none."""
    from transformers.integrations import finegrained_fp8

    for _ in range(2):
        transformers_private.let_fp8_load()
        experts = getattr(finegrained_fp8, "FP8Experts", None)
        plans = getattr(experts, "_impl_tp_layer_overrides", {})
        assert all(isinstance(plans.get(name, {}), dict) for name in (None, "eager", *plans))
        assert not plans or (plans.get(None) == {} and plans.get("no such", {"a": 1}) == {"a": 1})


def test_one_process_can_have_several_precisions():
    for precision in ("bf16", "no"):
        reset_precision()
        assert Accelerator(mixed_precision=precision, cpu=True).mixed_precision == precision


def test_no_other_file_touches_private_parts():
    """Attributes of `self`, `cls` and our own `_proved`, which hangs on models, are ours."""
    allowed = {SOURCE / "lm/torch_private.py", SOURCE / "lm/transformers_private.py",
               SOURCE / "util/distributed.py"}  # fmt: skip
    for path in (p for room in ROOMS for p in (SOURCE / room).rglob("*.py") if p not in allowed):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and re.match(r"_[a-z]", node.attr):
                owner = node.value.id if isinstance(node.value, ast.Name) else ""
                ours = owner in ("self", "cls") or node.attr == "_proved"
                assert ours, f"{path}:{node.lineno}: {node.attr}"
            if isinstance(node, ast.ImportFrom):
                assert "._" not in (node.module or ""), f"{path}:{node.lineno}"
