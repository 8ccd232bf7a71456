"""Protects the recipe: what it accepts, that nothing in it is without effect, and its errors.

A typo must never become a silent default, so every unknown or ineffective key is an error that
names the file, the dotted key and the nearest valid one; and the resolved recipe of a run must
load again to the very same recipe.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from deltalearn.errors import UserError
from deltalearn.recipe import GENERATE, RUN, TUNE, LoadedRecipe, Recipe, load_recipe, parse_override
from deltalearn.recipe.template import given_arguments

MINIMAL = """
    name: minimal
    student: {path: student-model}
    models:
      big: {path: big-model}
      small: {path: small-model}
    prompts: {source: prompts.jsonl}
    arms:
      base: {}
      delta: {chosen: big, rejected: small}
    evaluate: {questions: {q: {source: eval.jsonl}}}
"""


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., LoadedRecipe]:
    """`load("key=value", ..., text=...)`: MINIMAL (or `text`) with overrides."""

    def load_text(*overrides: str, text: str = MINIMAL) -> LoadedRecipe:
        path = tmp_path / "my.yaml"
        path.write_text(textwrap.dedent(text), encoding="utf-8")
        return load_recipe(path, list(overrides))

    return load_text


@pytest.fixture
def error(load) -> Callable[..., str]:
    """Like `load`, but the load must fail; returns the error's text."""

    def failing(*overrides: str, text: str = MINIMAL) -> str:
        with pytest.raises(UserError) as caught:
            load(*overrides, text=text)
        return str(caught.value)

    return failing


# -- the shipped recipe --------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["lab", "lab.yaml", "recipes/lab.yaml"])
def test_shipped_recipe_is_found_by_name(place, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # not found as a file of the checkout
    recipe = load_recipe(place).recipe
    assert recipe.name == "lab"
    assert recipe.generators == ["s", "xs", "student"]
    assert recipe.pairings == [("s", "xs"), ("xs", "s"), ("student", "xs")]
    assert recipe.tuned_arms == ["delta", "sft", "reversed", "self"]
    assert recipe.tune_of("delta").effective_beta == 5.0
    assert recipe.tune_of("sft").effective_beta is None
    assert recipe.model("student").path == "package://deltalearn.lab/ladder/m"


def test_the_papers_experiment_is_one_recipe_with_its_controls():
    recipe = load_recipe("tulu3-8b").recipe
    assert recipe.tuned_arms == ["delta", "sft", "reversed", "tulu3_preference"]
    delta, reversed_ = recipe.tune_of("delta"), recipe.tune_of("reversed")
    assert delta == reversed_  # all else equal
    assert (delta.lr, delta.beta, delta.batch_size, delta.epochs) == (5e-8, 5, 32, 1)
    strong = recipe.tune_of("tulu3_preference")
    assert (strong.lr, strong.batch_size, strong.scheduler) == (5e-7, 128, "linear")
    assert recipe.arms["tulu3_preference"].pairs.source.startswith("allenai/")
    own = load_recipe("tulu3-8b-pairs", command=TUNE).recipe
    assert own.student == recipe.student
    assert own.tune.model_copy(update={"max_pairs": None}) == delta


def test_unknown_recipe_lists_the_shipped_ones():
    with pytest.raises(UserError, match=r"nosuch: no such recipe file.*\blab\b"):
        load_recipe("nosuch")


def test_a_file_of_the_same_name_wins_over_the_shipped_recipe(tmp_path, monkeypatch):
    (tmp_path / "lab.yaml").write_text(textwrap.dedent(MINIMAL))
    monkeypatch.chdir(tmp_path)
    assert load_recipe("lab.yaml").recipe.name == "minimal"
    assert load_recipe("lab").recipe.name == "lab"


def test_minimal_recipe_gets_the_papers_defaults(load):
    recipe = load().recipe
    tune = recipe.tune_of("delta")
    assert (tune.method, tune.effective_beta, tune.lr, tune.batch_size) == (
        "dpo_norm",
        5.0,
        5e-7,
        32,
    )
    assert (recipe.generate.temperature, recipe.generate.max_tokens) == (0.0, 2048)
    assert recipe.seeds == (0, 1, 2)
    assert recipe.pairs.truncated == "drop"


# -- unknown keys --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("generat={}", "generat", "generate"),
        ("seed=[1]", "seed", "seeds"),
        ("student.pth=x", "student.pth", "path"),
        ("models.big.revison=x", "models.big.revison", "revision"),
        ("prompts.surce=x", "prompts.surce", "source"),
        ("generate.temprature=1.0", "generate.temprature", "temperature"),
        ("pairs.truncatd=keep", "pairs.truncatd", "truncated"),
        ("tune.learning_rte=1e-4", "tune.learning_rte", "lr"),
        ("tune.learning_rate=1e-4", "tune.learning_rate", "lr"),
        ("tune.per_device_train_batch_size=4", "tune.per_device_train_batch_size", "batch_size"),
        ("tune.max_steps=4", "tune.max_steps", "steps"),
        ("generate.max_new_tokens=4", "generate.max_new_tokens", "max_tokens"),
        ("student.name_or_path=x", "student.name_or_path", "path"),
        ("evaluate.questions.q.dataset=x", "evaluate.questions.q.dataset", "source"),
        ("tune.qqq=1", "tune.qqq", None),
        ("tune.batchsize=4", "tune.batchsize", "batch_size"),
        ("arms.delta.choosen=big", "arms.delta.choosen", "chosen"),
        ("arms.delta.tune.metod=sft", "arms.delta.tune.metod", "method"),
        ("evaluate.questions.q.metric=[loglik]", "evaluate.questions.q.metric", "metrics"),
        ("models.big.server.base_url=x", "models.big.server.base_url", "url"),
        ("models.big.server.api_key=x", "models.big.server.api_key", "key_env"),
        ("models.big.server.extra_body={}", "models.big.server.extra_body", "body"),
        ("models.big.server.max_concurrency=9", "models.big.server.max_concurrency", "concurrency"),
        ("models.big.server.prices.promt=1.0", "models.big.server.prices.promt", "prompt"),
        ("generate.ray.worker=1", "generate.ray.worker", "workers"),
    ],
)
def test_unknown_key_names_file_key_and_nearest(error, override, key, nearest):
    text = error(override)
    assert f"my.yaml: {key}: unknown key" in text
    if nearest:
        assert f"did you mean {nearest!r}?" in text
    else:  # nothing is near: the valid keys are listed, the one meant among them
        assert "valid keys here: method, lr," in text


def test_several_mistakes_are_reported_together(error):
    text = error("generat=1", "tune.lrr=1", "prompts.limit=0")
    assert "generat: unknown key" in text
    assert "tune.lrr: unknown key; did you mean 'lr'?" in text
    assert "prompts.limit: must be at least 1 (given: 0)" in text


def test_missing_sections_are_named(error):
    text = error(text="name: x\nstudent: {}\n")
    for key in ("student.path", "arms"):
        assert f"my.yaml: {key}: missing" in text
    assert "`deltalearn run` needs it" in text


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("tune.lr=0", "tune.lr"),
        ("tune.lr=.nan", "tune.lr"),
        ("tune.beta=-1", "tune.beta"),
        ("tune.method=ppo", "tune.method"),
        ("arms.delta.tune.lr=fast", "arms.delta.tune.lr"),
        ("generate.top_p=1.5", "generate.top_p"),
        ("generate.max_tokens=0", "generate.max_tokens"),
        ("generate.max_tokens=1.5", "generate.max_tokens"),
        ("pairs.truncated=maybe", "pairs.truncated"),
        ("pairs.max_length_difference=-1", "pairs.max_length_difference"),
        ("evaluate.questions.q.metrics=[accuracy]", "evaluate.questions.q.metrics.0"),
        ("evaluate.questions.q.metrics=[]", "evaluate.questions.q.metrics"),
        ("evaluate.bootstrap=10", "evaluate.bootstrap"),
        ("seeds=[]", "seeds"),
        ("seeds=[-1]", "seeds.0"),
        ("seeds=3", "seeds"),
        ("name=a/b", "name"),
        ("student.path=''", "student.path"),
        ("generate=null", "generate"),
        ("device=tpu", "device"),
    ],
)
def test_bad_value_names_the_key(error, override, key):
    assert f"my.yaml: {key}: " in error(override)


def test_a_model_name_must_be_usable_as_a_file_name(error):
    assert "models." in error("models={'../x': {path: y}}")


# -- servers -------------------------------------------------------------------------------------

SERVER = "models.big.server.url=http://localhost:8000/v1"
KEY = "sk-do-not-show-me-4711"


@pytest.mark.parametrize("value", [KEY, "4711", "'do not show me'", "['4711']", "MY-4711", "''"])
def test_key_env_must_look_like_a_variable_and_is_not_repeated(error, value):
    """Somebody may have put the key itself there."""
    text = error(SERVER, f"models.big.server.key_env={value}")
    assert "models.big.server: key_env must be the name of an environment variable" in text
    assert "export MY_KEY=" in text
    assert "4711" not in text and "show" not in text


def test_names_of_variables_are_taken(load):
    for name in ("MY_KEY", "_k", "key2"):
        recipe = load(SERVER, f"models.big.server.key_env={name}").recipe
        assert recipe.models["big"].server.key_env == name


@pytest.mark.parametrize(
    ("field", "remedy"),
    [
        ("model", "server.model"),
        ("messages", "the prompts"),
        ("temperature", "generate.temperature"),
        ("top_p", "generate.top_p"),
        ("max_tokens", "generate.max_tokens"),
        ("max_completion_tokens", "server.length_field"),
        ("seed", "generate.seed"),
        ("n", "generate.samples"),
        ("stream", "never streamed"),
    ],
)
def test_the_body_of_a_request_sets_nothing_that_is_set_elsewhere(error, field, remedy):
    """It would be asked for under the key of what the recipe says."""
    text = error(SERVER, f"models.big.server.body={{top_k: 5, {field}: 4711}}")
    assert f"models.big.server: body must not set {field}" in text
    assert remedy in text and "4711" not in text


@pytest.mark.parametrize(
    "field",
    ["api_key", "Authorization", "x-api-key", "token", "access_token", "password", "client_secret",
     "apiKey", "hf_token"],
)  # fmt: skip
@pytest.mark.parametrize("inside", ["{%s: %s}", "{extra: {%s: %s}}", "{all: [1, {%s: %s}]}"])
def test_the_body_of_a_request_holds_no_secret(error, field, inside):
    """Recipes are written into runs, and bodies into stores."""
    text = error(SERVER, f"models.big.server.body={inside % (field, KEY)}")
    assert field in text and "looks like a key or a password" in text and "key_env" in text
    assert KEY not in text


def test_fields_that_servers_know_are_taken(load):
    body = {
        "top_k": 20, "min_tokens": 5, "stop_token_ids": [2], "eos_token": "</s>", "token_type": "x",
        "max_thinking_tokens": 9, "skip_special_tokens": False, "extra": {"temperature": 1.0},
    }  # fmt: skip
    recipe = load(SERVER, f"models.big.server.body={yaml.safe_dump(body)}").recipe
    assert recipe.models["big"].server.body == body


# -- keys without effect -------------------------------------------------------------------------

SAMPLED = "generate.temperature=0.7"


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["generate.top_p=0.9"], "generate: top_p has no effect at temperature 0"),
        (["generate.seed=1"], "generate: seed has no effect at temperature 0"),
        (["generate.samples=2"], "generate: samples has no effect at temperature 0"),
        (["prompts.select=random"], "prompts: select has no effect without limit"),
        (["prompts.seed=1"], "prompts: seed has no effect unless select is random"),
        (
            ["prompts.limit=5", "prompts.seed=1"],
            "prompts: seed has no effect unless select is random",
        ),
        (["tune.method=sft", "tune.beta=1.0"], "tune: beta has no effect on sft"),
        (
            ["arms.delta.tune={method: sft, beta: 0.1}"],
            "arms.delta.tune: beta has no effect on sft",
        ),
        (["tune.steps=5", "tune.epochs=1"], "tune: steps and epochs both set the length"),
        (
            ["evaluate.questions.q.metrics=[loglik]", "evaluate.questions.q.max_tokens=9"],
            "evaluate.questions.q: max_tokens has no effect without the metric greedy_accuracy",
        ),
        (
            ["evaluate.questions.q.metrics=[loglik, loglik]"],
            "evaluate.questions.q: metrics names one twice",
        ),
        (["models.extra.path=x"], "models.extra is used by no arm"),
        (["arms.base.tune={lr: 1e-4}"], "tune has no effect on an arm without chosen"),
        (["seeds=[1, 1]"], "seeds: a seed occurs twice"),
        (["arms.delta.rejected=big"], "arms.delta: chosen and rejected are both 'big'"),
        (["arms.delta.rejected=null"], "arms.delta: an arm needs chosen and rejected, or neither"),
        (["arms.delta.rejected=tiny"], "no model is named 'tiny'; there are student, big, small"),
        (["models.a_over_b.path=x"], "models.a_over_b: a name with _over_ would confuse"),
        (["models.student.path=x"], "models.student: the name stands for the student"),
        (["arms={delta: {chosen: big, rejected: small}}"], "exactly one arm, named base"),
        (["arms.other={}"], "exactly one arm, named base"),
        (["tune.layout=padded", "tune.attention=sdpa"], "attention has no effect on padded rows"),
        (["tune.keep_best=true"], "keep_best has no effect without eval_pairs or dev"),
        (["tune.patience=2"], "patience has no effect without eval_pairs or dev"),
        (["tune.shard=true", "tune.optimizer=adafactor"], "shard cannot split the moments of ada"),
        (["tune.shard=true", "tune.lora={bits: 4}"], "shard cannot split the quantised weights"),
        (["tune.scheduler=constant", "tune.min_lr_ratio=0.2"], "min_lr_ratio has no effect on a"),
        (["pairs.thoughts=strip"], "pairs.thoughts: unknown key; did you mean 'reasoning'?"),
        (["tune.micro_batch_size=3"], "tune.micro_batch_size: unknown key; did you mean 'token_bu"),
        (
            ["evaluate.questions.q.source=q.jsonl", "tune.dev.source=q.jsonl"],
            "what chooses when to stop must not be what is reported",
        ),
    ],
)
def test_key_without_effect_is_an_error(error, overrides, says):
    text = error(*overrides)
    assert says in text
    assert "my.yaml" in text


@pytest.mark.parametrize(
    "overrides",
    [
        [SAMPLED, "generate.top_p=0.9", "generate.seed=1", "generate.samples=2"],
        ["prompts.limit=5", "prompts.select=random", "prompts.seed=1"],
        ["prompts.limit=5"],
        ["generate.top_p=1.0", "generate.seed=0", "generate.samples=1"],  # defaults are harmless
        ["prompts.select=first", "prompts.seed=0"],
        ["evaluate.questions.q.metrics=[loglik]", "evaluate.questions.q.max_tokens=512"],
        ["tune.eval_pairs=8", "tune.keep_best=true", "tune.patience=2", "tune.eval_every=5"],
        ["tune.layout=packed", "tune.attention=sdpa", "tune.lora={r: 4}", "tune.shard=true"],
        ["arms.self={chosen: student, rejected: small}"],
    ],
)
def test_keys_that_have_an_effect_are_accepted(load, overrides):
    load(*overrides)


@pytest.mark.parametrize(
    "override", ["generate.max_tokens=true", "generate.max_tokens='7'", "seeds=[true]"]
)
def test_values_of_another_type_are_not_coerced(error, override):
    assert override.partition("=")[0] in error(override)


@pytest.mark.parametrize("key", ["tune.lr", "generate.temperature", "tune.beta"])
def test_infinite_numbers_are_errors(error, key):
    assert key in error(f"{key}=.inf")


# -- per-arm tuning ------------------------------------------------------------------------------


def test_arm_settings_go_on_top_of_the_shared_ones(load):
    recipe = load("tune={lr: 1e-4, beta: 2.0}", "arms.delta.tune={beta: 3.0}").recipe
    tune = recipe.tune_of("delta")
    assert (tune.lr, tune.beta) == (1e-4, 3.0)


def test_arm_with_another_method_does_not_inherit_beta(load):
    recipe = load(
        "tune={beta: 2.0}",
        "arms.sft={chosen: big, rejected: small, tune: {method: sft}}",
        "arms.plain={chosen: big, rejected: small, tune: {method: dpo}}",
        "arms.same={chosen: big, rejected: small, tune: {method: dpo_norm}}",
    ).recipe
    assert recipe.tune_of("delta").effective_beta == 2.0
    assert recipe.tune_of("same").effective_beta == 2.0
    assert recipe.tune_of("sft").effective_beta is None
    assert recipe.tune_of("plain").effective_beta == 0.1  # plain DPO's own default


def test_arm_with_steps_does_not_inherit_epochs_and_vice_versa(load):
    recipe = load("tune.epochs=2", "arms.delta.tune={steps: 7}").recipe
    assert (recipe.tune_of("delta").steps, recipe.tune_of("delta").epochs) == (7, None)
    recipe = load("tune.steps=9", "arms.delta.tune={epochs: 0.5}").recipe
    assert (recipe.tune_of("delta").steps, recipe.tune_of("delta").epochs) == (None, 0.5)


def test_arm_error_that_only_shows_after_merging_names_the_arm(error):
    text = error("tune.eval_pairs=null", "arms.delta.tune.patience=3")
    assert "arms.delta.tune: patience has no effect without eval_pairs or dev" in text


def test_arm_with_another_method_does_not_inherit_options_it_does_not_take(load):
    recipe = load(
        "tune={label_smoothing: 0.1, nll_coef: 0.2}",
        "arms.sft={chosen: big, rejected: small, tune: {method: sft}}",
        "arms.ipo={chosen: big, rejected: small, tune: {method: ipo}}",
        "arms.plain={chosen: big, rejected: small, tune: {method: dpo}}",
    ).recipe
    found = {arm: recipe.tune_of(arm) for arm in ("delta", "sft", "ipo", "plain")}
    smoothing = {arm: tune.label_smoothing for arm, tune in found.items()}
    assert smoothing == {"delta": 0.1, "sft": None, "ipo": None, "plain": 0.1}
    nll = {arm: tune.nll_coef for arm, tune in found.items()}
    assert nll == {"delta": 0.2, "sft": 0.0, "ipo": 0.2, "plain": 0.2}


# -- overrides -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "keys", "value"),
    [
        ("tune.lr=1e-4", ["tune", "lr"], 1e-4),
        ("a=1E5", ["a"], 1e5),
        ("a=-2.5e+3", ["a"], -2500.0),
        ("a=3", ["a"], 3),
        ("a=1.5", ["a"], 1.5),
        ("a=true", ["a"], True),
        ("a=null", ["a"], None),
        ("a=", ["a"], None),
        ("a=1e", ["a"], "1e"),
        ("a=e5", ["a"], "e5"),
        ("a='1e5'", ["a"], "1e5"),
        ("a=package://x/y", ["a"], "package://x/y"),
        ("a=b=c", ["a"], "b=c"),
        ("seeds=[0, 1, 2]", ["seeds"], [0, 1, 2]),
        ("arms.x.tune={lr: 1e-5}", ["arms", "x", "tune"], {"lr": 1e-5}),
        (" a.b =2", ["a", "b"], 2),
    ],
)
def test_parse_override(text, keys, value):
    parsed = parse_override(text)
    assert parsed == (keys, value)
    assert type(parsed[1]) is type(value)


@pytest.mark.parametrize("text", ["tune.lr", "=1", "", " =1", "a=[1", "a={b: 1, b: 2}"])
def test_malformed_override_is_a_user_error(text):
    with pytest.raises(UserError, match="--set"):
        parse_override(text)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_that_python_prints_is_read_as_that_number(number):
    assert parse_override(f"a={number!r}") == (["a"], number)


def test_overrides_create_nested_sections_and_win_in_order(load):
    recipe = load("tune.lr=1e-3", "tune.lr=1e-4", "arms.delta.tune.beta=9").recipe
    assert recipe.tune.lr == 1e-4
    assert recipe.tune_of("delta").beta == 9.0


def test_override_below_a_plain_value_is_a_user_error(error):
    assert "--set name.first=x: name is a value, not a section" in error("name.first=x")


# -- unsafe or ambiguous YAML --------------------------------------------------------------------


def test_duplicate_keys_are_refused_with_their_line(error):
    text = error(text=MINIMAL + "    name: again\n")
    assert "the key 'name' is given twice" in text
    assert "line 12" in text


def test_nested_duplicate_keys_are_refused(error):
    assert "the key 'path' is given twice" in error("student={path: a, path: b}")


@pytest.mark.parametrize(
    "value",
    [
        "!!python/object/apply:os.system ['touch HACKED']",
        '!!python/object/apply:builtins.exec [\'open("HACKED", "w")\']',
        "!!python/name:os.system",
        "!!python/object/new:os.system ['touch HACKED']",
    ],
)
def test_python_tags_are_refused_and_never_run(error, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "not valid YAML" in error(text=f"name: {value}\n")
    with pytest.raises(UserError, match="not valid YAML"):
        parse_override(f"name={value}")
    assert not (tmp_path / "HACKED").exists()


@pytest.mark.parametrize(
    "text", ["[a, b]", "", "just words", "a: [", "a: \x00", "&a {b: *a}", "'unclosed"]
)
def test_yaml_that_is_no_mapping_or_no_yaml_is_a_user_error(error, text):
    assert "my.yaml" in error(text=text)


def test_recipe_that_is_not_utf8_is_a_user_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: Größe".encode("latin-1"))
    with pytest.raises(UserError, match=r"latin\.yaml: not valid YAML"):
        load_recipe(path)


@pytest.mark.parametrize(
    "text",
    ["{[1, 2]: 3}", "name: 2024-13-45", "name: !!int abc", "name: " + "[" * 3000],
    ids=["unhashable-key", "impossible-date", "bad-int", "deep-nesting"],
)
def test_strange_yaml_is_a_user_error(error, text):
    assert "my.yaml" in error(text=text)


def test_arm_tuning_key_that_is_no_string_is_a_user_error(error):
    assert "arms.delta.tune" in error("arms.delta.tune={1: 2}")


def test_merge_keys_share_settings_between_arms(load):
    text = MINIMAL.replace(
        "delta: {chosen: big, rejected: small}",
        "delta: &d {chosen: big, rejected: small}\n      sft: {<<: *d, tune: {method: sft}}",
    )
    assert load(text=text).recipe.arms["sft"].chosen == "big"


# -- the resolved recipe -------------------------------------------------------------------------


def reload(loaded: LoadedRecipe, tmp_path: Path) -> LoadedRecipe:
    path = tmp_path / "resolved.yaml"
    path.write_text(loaded.resolved_yaml(), encoding="utf-8")
    return load_recipe(path, command=loaded.command)


def test_resolved_recipe_loads_again_to_the_same_recipe(tmp_path):
    loaded = load_recipe("lab", ["tune.lr=3e-5", "seeds=[4]", "arms.sft.tune.warmup_ratio=0.5"])
    again = reload(loaded, tmp_path)
    assert again.recipe == loaded.recipe
    for arm in loaded.recipe.tuned_arms:
        assert again.recipe.tune_of(arm) == loaded.recipe.tune_of(arm)
    assert reload(again, tmp_path).recipe == loaded.recipe


def test_resolved_recipe_tells_where_every_value_is_from(load):
    text = load("tune.lr=1e-4", "arms.delta.tune={beta: 2.0}").resolved_yaml()
    lines = {line.split("#")[0].strip(): line.partition("  # ")[2] for line in text.splitlines()}
    assert lines["lr: 0.0001"] == "--set"
    assert lines["beta: 2.0"] == "--set"
    assert lines["name: minimal"] == "my.yaml"
    assert lines["path: big-model"] == "my.yaml"
    assert lines["batch_size: 32"] == "default"
    assert lines["seeds: [0, 1, 2]"] == "default"
    values = [line for line in text.splitlines()[1:] if not line.endswith(":")]
    assert all("  # " in line for line in values)


def test_override_of_a_section_replaces_the_origins_inside_it(load):
    text = MINIMAL.replace("prompts.jsonl}", "prompts.jsonl, limit: 5}")
    loaded = load("prompts={source: other.jsonl}", text=text)
    assert loaded.origins["prompts.source"] == "--set"
    assert "limit: null  # default" in loaded.resolved_yaml()  # the file's 5 is gone
    loaded = load("arms.delta={chosen: small, rejected: big}")
    assert loaded.origins["arms.delta.chosen"] == "--set"
    assert loaded.origins["arms.base"] == "my.yaml"


def test_resolved_recipe_spells_out_every_key_of_the_schema(load):
    values = yaml.safe_load(load().resolved_yaml())
    assert set(values) == set(Recipe.model_fields) - {"compare"}  # which `run` does not read
    for section in ("prompts", "generate", "pairs", "tune", "evaluate"):
        assert set(values[section]) == set(type(getattr(load().recipe, section)).model_fields)


AWKWARD = [
    "null",
    "true",
    "1.0",
    "# no comment",
    "a: b",
    "{x}",
    "'",
    '"',
    "ü 你好 🙂",
    " x ",
    "- a",
]


@pytest.mark.parametrize("value", AWKWARD)
def test_awkward_strings_survive_the_resolved_recipe(load, tmp_path, value):
    loaded = load()
    student = loaded.recipe.student.model_copy(update={"path": value})
    recipe = loaded.recipe.model_copy(update={"student": student})
    assert reload(LoadedRecipe(recipe, {}), tmp_path).recipe == recipe


@pytest.mark.parametrize("value", ["12e4567", "1e5"])
def test_strings_that_look_like_our_numbers_survive_the_resolved_recipe(load, tmp_path, value):
    loaded = load(f"student.revision='{value}'")
    assert reload(loaded, tmp_path).recipe == loaded.recipe


@pytest.mark.parametrize("name", ["on", "8", "1e3", "null"])
def test_model_names_that_look_like_other_yaml_survive_the_resolved_recipe(load, tmp_path, name):
    loaded = load(text=MINIMAL.replace("big:", f"'{name}':").replace(": big,", f": '{name}',"))
    assert name in loaded.recipe.models
    assert reload(loaded, tmp_path).recipe == loaded.recipe


# -- what each command needs ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "text", "says"),
    [
        (
            TUNE,
            "name: x\n",
            "my.yaml: student.path: missing; `deltalearn tune` needs it: give --s",
        ),
        (TUNE, MINIMAL, "pairs.source: missing; `deltalearn tune` needs it: give --pairs"),
        (GENERATE, "name: x\n", "models: missing; `deltalearn generate` needs it: give --model"),
        (RUN, "student: {path: x}\npairs: {source: p}\n", "it has what `deltalearn tune` needs"),
        (RUN, "models: {a: {path: x}}\nprompts: {source: p}\n", "what `deltalearn generate` needs"),
        (RUN, MINIMAL.replace("prompts: {source: prompts.jsonl}", ""), "prompts: missing; big, sm"),
        (RUN, MINIMAL + "    pairs: {source: p}\n", "pairs.source has no effect beside arms"),
        (TUNE, "seeds: [1, 2]\nstudent: {path: x}\npairs: {source: p}\n", "give --seed"),
    ],
)
def test_a_command_names_what_it_misses_and_where_it_would_be(tmp_path, command, text, says):
    path = tmp_path / "my.yaml"
    path.write_text(textwrap.dedent(text))
    with pytest.raises(UserError) as caught:
        load_recipe(path, command=command)
    assert says in str(caught.value)


def test_a_command_takes_its_sections_of_a_whole_recipe(load, tmp_path):
    """What it resolves to has nothing else, so that other sections may change meanwhile."""
    load()
    tuned = load_recipe(
        tmp_path / "my.yaml", ["lr=1e-4"], command=TUNE,
        options={"pairs.source": "p.jsonl", "seeds": [3]},
    )  # fmt: skip
    assert list(tuned.values()) == list(TUNE.sections)
    assert (tuned.recipe.name, tuned.recipe.tune.lr, tuned.recipe.seeds) == ("minimal", 1e-4, (3,))
    assert reload(tuned, tmp_path).values() == tuned.values()
    answered = load_recipe(tmp_path / "my.yaml", command=GENERATE)
    assert list(answered.values()) == list(GENERATE.sections)


def test_single_commands_have_a_name_and_a_seed_of_their_own():
    options = {"student.path": "x", "pairs.source": "p"}
    recipe = load_recipe(None, command=TUNE, options=options).recipe
    assert (recipe.name, recipe.seeds) == ("tune", (0,))
    options = {"models.a.b": {"path": "x"}, "prompts.source": "p", "models.*.system": "Be brief."}
    recipe = load_recipe(None, command=GENERATE, options=options).recipe
    assert recipe.name == "generate"
    assert recipe.models["a.b"].system == "Be brief."


@pytest.mark.parametrize(("key", "new"), [("model={path: x}", "student"), ("seed=1", "seeds")])
@pytest.mark.parametrize("command", [RUN, TUNE, GENERATE])
def test_keys_of_older_recipes_are_recognised(load, tmp_path, key, new, command):
    load()
    with pytest.raises(UserError, match=f"{key.split('=')[0]}: unknown key; did you mean '{new}'"):
        load_recipe(tmp_path / "my.yaml", [key], command=command)


# -- pairs from outside --------------------------------------------------------------------------

OUTSIDE = "arms.strong={pairs: {source: strong.jsonl, chosen_column: a, limit: 9}}"


def test_an_arm_may_train_on_pairs_from_outside(load):
    recipe = load(OUTSIDE, "arms.strong.tune={lr: 1e-6}").recipe
    assert recipe.tuned_arms == ["delta", "strong"]
    assert recipe.pairings == [("big", "small")]
    assert recipe.arms["strong"].pairs.chosen_column == "a"
    assert recipe.tune_of("strong").lr == 1e-6


def test_a_recipe_of_outside_pairs_alone_needs_no_answers(load):
    text = """
        name: outside
        student: {path: student-model}
        arms: {base: {}, strong: {pairs: {source: strong.jsonl}}}
    """
    recipe = load(text=text).recipe
    assert (recipe.generators, recipe.prompts, recipe.evaluate) == ([], None, None)


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([OUTSIDE, "arms.strong.chosen=big", "arms.strong.rejected=small"], "give one"),
        (["arms.strong={pairs: {source: p, truncated: keep}}"], "arms.strong.pairs.truncated: unk"),
        (["pairs.split=train"], "pairs: split has no effect without source"),
        (
            ["pairs={source: p, truncated: keep}"],
            "pairs: truncated has no effect on pairs from outside",
        ),
    ],
)
def test_pairs_are_made_or_from_outside(error, overrides, says):
    assert says in error(*overrides)


# -- arguments of chat templates -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("2026-11-26", "2026-11-26"),
        ("!!timestamp 2026-11-26", "2026-11-26"),
        ("2026-11-26T12:00:00Z", "2026-11-26T12:00:00Z"),
        ("26 Nov 2026", "26 Nov 2026"),
        ("[2026-11-26]", ["2026-11-26"]),
        ("1e-4", 1e-4),
        ("false", False),
    ],
)
def test_a_date_is_text(load, tmp_path, written, value):
    """JSON has no dates, and neither do templates, stores and servers that values go to."""
    loaded = load(f"student.template.x={written}")
    assert loaded.recipe.student.template == {"x": value}
    (tmp_path / "again.yaml").write_text(loaded.resolved_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "again.yaml").recipe == loaded.recipe
    assert given_arguments([f"x={written}"], "student") == {"student.template.x": value}
    assert load("day=2026-11-26").recipe.day == "2026-11-26"


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("chat_template", "give chat_template beside the path"),
        ("tokenize", "leave it out"),
        ("add_generation_prompt", "leave it out"),
        ("strftime_now", "set `day`"),
    ],
)
def test_what_transformers_takes_itself_is_no_argument_of_a_template(error, name, remedy):
    for model in ("student", "models.big", "generate"):
        text = error(f"{model}.template.{name}=x")
        assert f"template.{name} is no argument of a chat template" in text and remedy in text
