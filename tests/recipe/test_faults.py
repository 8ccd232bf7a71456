"""Protects what a wrong recipe is told: in the project's words, with what is valid and nearest.

The validator's own sentences speak of classes and of Python; none of them may reach a user,
whatever the field and whatever was given for it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from helpers.cli import small

from deltalearn.errors import UserError
from deltalearn.recipe import EVALUATE, GENERATE, RUN, TUNE, load_recipe
from deltalearn.recipe.commands import COMPARE
from deltalearn.recipe.keys import ANY, sections

WRONG: list[Any] = [
    5,
    -1,
    0.5,
    -0.5,
    1e400,
    True,
    "",
    "xx",
    "-",
    "7",
    [],
    [1, 2, 3],
    ["x"],
    {"x": 1},
]
NOT_OURS = re.compile(
    r"[Ii]nput should|instance of|valid (dictionary|tuple|string|integer|list|number|boolean)|"
    r"[A-Z][a-z]+Spec|pydantic|should match pattern|\bmodel_type|\btuple\b|\bdict\b|not what is exp"
)
FIELDS = [
    (f"{key}.{name}".lstrip(".")) for key, section in sections() for name in section.model_fields
]


@pytest.fixture
def error(tmp_path):
    def load(*overrides: str, command=RUN, text: str | None = None) -> str:
        path = tmp_path / "my.yaml"
        path.write_text(text if text is not None else yaml.safe_dump(RECIPE))
        with pytest.raises(UserError) as caught:
            load_recipe(path, overrides, command=command)
        return str(caught.value)

    return load


RECIPE = {
    "name": "x",
    "student": "m",
    "models": {"large": "l", "smaller": "s"},
    "prompts": "p.jsonl",
    "arms": {"base": {}, "delta": {"chosen": "large", "rejected": "smaller"}},
    "evaluate": {"questions": {"q": "q.jsonl"}},
}


@pytest.mark.slow
@pytest.mark.parametrize("dotted", FIELDS)
def test_the_validator_never_speaks_to_a_user(tmp_path, dotted):
    path = tmp_path / "my.yaml"
    for value in WRONG:
        values: Any = value
        for part in reversed(dotted.replace(ANY, "large").split(".")):
            values = {part: values}
        path.write_text(yaml.safe_dump({**RECIPE, **values}))
        for command in (RUN, TUNE):
            try:
                load_recipe(path, command=command)
            except UserError as error:
                assert not NOT_OURS.search(str(error)), str(error)
                assert all(line.startswith(str(path)) for line in str(error).splitlines())


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("seeds=3", "seeds: expected a list, such as seeds: [3] (given: 3)"),
        ("tune.adam_betas=0.9", "tune.adam_betas: expected a list, such as adam_betas: [0.9]"),
        ("tune.adam_betas=[1.5, 0.9]", "tune.adam_betas.0: must be less than 1 (given: 1.5)"),
        ("name=my run", "name: expected a name of letters, digits, dots, dashes and underscores"),
        ("models={my model: x}", "models.my model: expected a name of letters, digits, dots"),
        ("student=5", "student: expected a section, such as student: {path: ...} (given: 5)"),
        ("prompts=[a, b]", "prompts: expected a section, such as prompts: {source: ...}"),
        (
            "models=x",
            "models: expected a section, such as models: {NAME: {path: ...}} (given: 'x')",
        ),
        ("generate=fast", "generate: expected a section, such as generate: {engine: ...}"),
        ("tune.lora=16", "tune.lora: expected a section, such as lora: {r: ...} (given: 16)"),
        ("tune.steps=1.5", "tune.steps: expected a whole number (given: 1.5)"),
        ("tune.batch_size=0", "tune.batch_size: must be at least 1 (given: 0)"),
        ("tune.lr=0", "tune.lr: must be more than 0 (given: 0)"),
        ("tune.lr=fast", "tune.lr: expected a number (given: 'fast')"),
        ("tune.lr=.inf", "tune.lr: expected a number that is not infinite"),
        (
            "tune.gradient_checkpointing=often",
            "tune.gradient_checkpointing: expected true, false, a number or auto (given: 'often')",
        ),
        ("generate.top_p=2", "generate.top_p: must be at most 1 (given: 2)"),
        ("tune.compile=1", "tune.compile: expected true or false (given: 1)"),
        ("student.path=", "student.path: expected a text (given: None)"),
        ("prompts.source=''", "prompts.source: must not be empty (given: '')"),
    ],
)
def test_a_wrong_value_is_told_what_is_expected(error, override, says):
    assert f"my.yaml: {says}" in error(override)


@pytest.mark.parametrize(
    ("override", "nearest"),
    [
        ("tune.method=DPO", "dpo"),
        ("tune.method=dpo-norm", "dpo_norm"),
        ("tune.method=dpo_nrm", "dpo_norm"),
        ("tune.method=sigmoid_norm", "dpo_norm"),
        ("dtype=fp16", "float16"),
        ("dtype=bf16", "bfloat16"),
        ("dtype=Float32", "float32"),
        ("device=gpu", "cuda"),
        ("generate.engine=vLLM", "vllm"),
        ("tune.scheduler=cosin", "cosine"),
        ("evaluate.questions.q.metrics=[acc]", "greedy_accuracy"),
        ("evaluate.questions.q.scorer=last-number", "last_number"),
        ("tune.lora={bits: 8}", None),
        ("tune.method=xyz", None),
    ],
)
def test_a_wrong_choice_names_all_and_the_nearest(error, override, nearest):
    text = error(override)
    assert "expected " in text
    if nearest:
        assert f"did you mean {nearest!r}?" in text
    else:
        assert "did you mean" not in text
    if override.startswith("tune.method"):
        assert "expected dpo_norm, dpo, ipo," in text and "orpo or sft" in text


@pytest.mark.parametrize(
    ("override", "command", "meant"),
    [
        ("lr=1e-4", RUN, "'tune.lr'"),
        ("learning_rate=1e-4", RUN, "'tune.lr'"),
        ("beta=1", RUN, "'tune.beta'"),
        ("temperature=1", RUN, "'generate.temperature'"),
        ("tune.temperature=1", RUN, "'generate.temperature'"),
        ("metrics=[loglik]", RUN, "'evaluate.questions.NAME.metrics'"),
        ("generate.lr=1e-4", GENERATE, "'tune.lr'"),
        ("generate.tune=1", RUN, "'arms.NAME.tune'"),
        ("arms.delta.lr=1e-4", RUN, "'tune.lr'"),
        ("evaluate.url=x", EVALUATE, "'evaluate.backend.url'"),
        ("tune.Learning-Rate=1e-4", RUN, "'lr'"),
    ],
)
def test_a_key_of_another_section_is_found_there(error, override, command, meant):
    text = error(override, command=command)
    assert "unknown key; did you mean " in text and meant in text


def test_short_forms_are_what_they_stand_for(tmp_path):
    short = {
        **RECIPE,
        "arms": {**RECIPE["arms"], "strong": {"pairs": "strong.jsonl"}},
        "tune": {"dev": "dev.jsonl"},
    }
    long = {
        **short,
        "student": {"path": "m"},
        "models": {"large": {"path": "l"}, "smaller": {"path": "s"}},
        "prompts": {"source": "p.jsonl"},
        "arms": {**RECIPE["arms"], "strong": {"pairs": {"source": "strong.jsonl"}}},
        "tune": {"dev": {"source": "dev.jsonl"}},
        "evaluate": {"questions": {"q": {"source": "q.jsonl"}}},
    }
    found = []
    for values in (short, long):
        (tmp_path / "my.yaml").write_text(yaml.safe_dump(values))
        found.append(load_recipe(tmp_path / "my.yaml"))
    assert found[0].recipe == found[1].recipe
    assert found[0].resolved_yaml() == found[1].resolved_yaml(), "and each value is from the file"


def test_short_forms_go_together_with_keys_of_their_sections(tmp_path):
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(RECIPE))
    settings = ["student.template={a: 1}", "prompts.limit=3", "models.large=other"]
    recipe = load_recipe(tmp_path / "my.yaml", settings).recipe
    assert (recipe.student.path, recipe.student.template) == ("m", {"a": 1})
    assert (recipe.prompts.source, recipe.prompts.limit) == ("p.jsonl", 3)
    assert recipe.models["large"].path == "other"
    tuned = load_recipe(None, ["student=m", "pairs=p.parquet"], command=TUNE).recipe
    assert (tuned.student.path, tuned.pairs.source) == ("m", "p.parquet")


def test_a_recipe_that_is_not_there_names_its_neighbour(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small(tmp_path)
    for given, meant in (
        ("small", "small.yaml"), ("smal", "small.yaml"), ("Small.yml", "small.yaml"),
        ("labs", "lab"), ("tulu3_8b", "tulu3-8b"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            load_recipe(given)
        text = str(caught.value)
        assert f"{given}: no such recipe file (looked for from {tmp_path})" in text
        assert f"did you mean {meant!r}?" in text
        assert "shipped recipes: lab," in text
    with pytest.raises(UserError) as caught:
        load_recipe("/zzz/qqqqqq.yaml", command=COMPARE)
    assert "did you mean" not in str(caught.value) and "looked for" not in str(caught.value)
