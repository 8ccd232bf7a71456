"""Protects 8-bit floats: the right linear maps get them, and nothing else changes.

torchao says on a CPU that its GPU libraries do not load, so it is not among the packages of tests;
with it installed the class at the end runs too, its products emulated.
"""

from __future__ import annotations

import copy
import sys
from dataclasses import dataclass
from types import ModuleType

import peft
import pytest
import torch
from helpers.small_configs import small_llama
from transformers import AutoModelForCausalLM

from deltalearn.errors import UserError
from deltalearn.lm.load import place
from deltalearn.recipe import LoraSpec, TuneSpec
from deltalearn.tune import float8
from deltalearn.tune.float8 import require_float8, use_float8

CONFIG = small_llama()
OF_A_LAYER = 7


def drawn(**changes):
    torch.manual_seed(0)
    config = copy.deepcopy(CONFIG)
    config.update(changes)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


@pytest.fixture
def swapped(monkeypatch) -> list[str]:
    """Names of the modules that a stand-in for torchao is told to change."""
    names: list[str] = []

    @dataclass(frozen=True)
    class Config:
        scaling: str
        emulate: bool = False

        @classmethod
        def from_recipe_name(cls, name):
            return cls(name)

    def convert(model, *, config, module_filter_fn):
        assert config == Config("rowwise_with_gw_hp", emulate=False)
        names.extend(n for n, m in model.named_modules() if module_filter_fn(m, n))

    part = ModuleType("torchao.float8")
    part.Float8LinearConfig, part.convert_to_float8_training = Config, convert
    monkeypatch.setitem(sys.modules, "torchao.float8", part)
    return names


def test_layers_and_not_the_head(swapped):
    assert use_float8(drawn()) == len(swapped) == 3 * OF_A_LAYER
    assert all(".layers." in name for name in swapped)


def test_adapters_stay_as_they_are(swapped):
    adapters = peft.LoraConfig(r=16, target_modules="all-linear")
    model = peft.get_peft_model(drawn(), adapters)
    assert use_float8(model.get_base_model()) == len(swapped) == 3 * OF_A_LAYER
    assert all(name.endswith("base_layer") for name in swapped)


def test_sides_that_kernels_do_not_take_are_left_out(swapped):
    """An MLP of 152 numbers: 8 more than a multiple of 16."""
    assert use_float8(drawn(intermediate_size=152)) == 3 * 4
    assert not any("mlp" in name for name in swapped)


class TestRefusals:
    def test_no_gpu(self):
        with pytest.raises(UserError, match=r"capability 8.9 or more, not cpu; leave float8 out"):
            require_float8("cpu", "bfloat16")

    def test_an_older_gpu_another_precision_and_no_package(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "A100")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
        with pytest.raises(UserError, match="not A100"):
            require_float8("cuda", "bfloat16")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
        with pytest.raises(UserError, match="needs dtype bfloat16, not float32"):
            require_float8("cuda", "float32")
        monkeypatch.setitem(sys.modules, "torchao.float8", None)
        with pytest.raises(UserError, match=r"needs torchao.*\[float8\]"):
            require_float8("cuda", "bfloat16")

    def test_quantised_weights(self):
        with pytest.raises(ValueError, match="float8 cannot multiply the quantised weights"):
            TuneSpec(float8=True, lora=LoraSpec(bits=4))


def test_the_reference_of_8_bit_floats_is_another():
    from types import SimpleNamespace

    from deltalearn.tune.train import reference_scope

    files, where = SimpleNamespace(fingerprint="x"), place("cpu", "bfloat16")
    scopes = [reference_scope(files, TuneSpec(float8=f), where) for f in (False, True)]
    assert scopes == ["x:bfloat16", "x:bfloat16:float8"]


class TestWithTorchao:
    @pytest.fixture(autouse=True)
    def there(self):
        pytest.importorskip("torchao")

    def test_values_are_near_and_those_of_a_row_do_not_depend_on_others(self):
        model = drawn()
        ids = torch.randint(512, (2, 21), generator=torch.Generator().manual_seed(0))
        exact = model(input_ids=ids).logits
        assert float8.use_float8(model, emulate=True) == 21
        found = model(input_ids=ids, labels=ids)
        apart = (found.logits - exact).std() / exact.std()
        assert 1e-3 < apart < 0.1
        assert torch.equal(model(input_ids=ids[:1]).logits, found.logits[:1])
        found.loss.backward()
        assert all(p.grad is not None for p in model.parameters())

    def test_adapters_train_beside_it_under_the_same_names(self):
        model = peft.get_peft_model(drawn(), peft.LoraConfig(r=4, target_modules="all-linear"))
        before = list(model.state_dict())
        use_float8(model.get_base_model(), emulate=True)
        assert list(model.state_dict()) == before
        ids = torch.arange(12).unsqueeze(0)
        model(input_ids=ids, labels=ids).loss.backward()
        trained = {n for n, p in model.named_parameters() if p.grad is not None}
        assert trained == {n for n in dict(model.named_parameters()) if "lora_" in n}
