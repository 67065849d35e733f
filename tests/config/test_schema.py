import inspect
import re
from pathlib import Path

import pytest

from qgait_ptq.config.recipes import parse, read_recipe, recipe_yaml
from qgait_ptq.config.schema import LayerBits, ModelSource, QuantConfig, Recipe
from qgait_ptq.errors import ConfigError

ZERO = {"neg_weight": 0, "pos_weight": 0, "anchor_weight": 0}


def test_a_recipe_survives_yaml():
    recipe = Recipe(
        model=ModelSource(path=Path("m.pt"), factory="a:b", arguments={"channels": [8, 16]}),
        quantization=QuantConfig(weight_bits=4, layers={"blocks.*": {"weight_bits": 8}}, seed=3),
    )
    path = Path("recipe.yaml")
    import yaml

    assert parse(Recipe, yaml.safe_load(recipe_yaml(recipe)), str(path)) == recipe


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"weight_bits": 1}, "weight_bits.*greater than or equal to 2, not 1"),
        ({"activation_bits": 9}, "activation_bits.*less than or equal to 8, not 9"),
        ({"observer": "magic"}, "observer"),
        ({"wieght_bits": 4}, "wieght_bits: unknown key; did you mean weight_bits"),
        ({"layers": {"a": {"bits": 3}}}, "layers.a.bits"),
        ({"calibration_sequences": 0}, "calibration_sequences"),
        ({"seed": -1}, "seed.*greater than or equal to 0, not -1"),
        ({"layers": {"conv": {}}}, "layers.conv: .*no width; set weight_bits, activation_bits or both"),
        (
            {"refined_ranges": True, "rounding": "gptq"},
            "refined_ranges .*, but rounding is gptq; set one of them",
        ),
        ({"refined_ranges": True, "rounding": "nearest"}, "but rounding is nearest"),
        ({"idc": ZERO}, "idc: all weights of the loss are 0"),
        ({"idc": {**ZERO, "enabled": False}, "finetune": {"enabled": True}}, "idc: all weights of the loss"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(QuantConfig, values, "recipe.yaml")


def test_weights_of_a_stage_that_is_off_may_be_zero():
    assert parse(QuantConfig, {"idc": {**ZERO, "enabled": False}}, "recipe.yaml").idc.enabled is False


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not valid YAML"), ("- 1", "a recipe must be a mapping"), ("3", "mapping")]
)
def test_broken_recipes_are_refused(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("quantization:\n  seed: 1\n  weight_bits: 12\n", "line 3: quantization.weight_bits: .*, not 12"),
        (
            "model:\n  path: m\nquantisation: {}\n",
            r"line 3: quantisation: unknown key; did you mean quantization",
        ),
        ("quantization:\n  idc:\n    stepps: 3\n", r"line 3: quantization.idc.stepps: .*mean steps"),
        ("quantization:\n  include: [a, 3]\n", r"line 2: quantization.include.1: "),
        (
            "quantization:\n  budget: {size_mb: 1, bops_percent: 2}\n",
            r"line 2: quantization.budget: set either",
        ),
        (
            "quantization:\n  max_drop: 1\n  budget: {size_mb: 1}\n",
            r"line 1: quantization: .*exclude each other",
        ),
    ],
)
def test_the_line_and_the_key_of_a_broken_recipe_are_named(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    values = {"model": {"path": "m"}, **read_recipe(path)}
    with pytest.raises(ConfigError, match=message):
        parse(Recipe, values, "r.yaml", path)


def test_what_an_option_said_has_no_line(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("model: {path: m}\n")
    with pytest.raises(ConfigError, match=r"^r.yaml: quantization.seed: "):
        parse(Recipe, {"model": {"path": "m"}, "quantization": {"seed": "x"}}, "r.yaml", path)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: QuantConfig(weight_bits=9),
            "weight_bits: Input should be less than or equal to 8, not 9",
        ),
        (
            lambda: QuantConfig(weight_bitz=4),
            "QuantConfig: weight_bitz: unknown key; did you mean weight_bits",
        ),
        (
            lambda: QuantConfig(idc={"steps": 0}),
            "idc.steps: Input should be greater than or equal to 1, not 0",
        ),
        (
            lambda: QuantConfig(observer="max"),
            "QuantConfig: observer: Input should be 'minmax', 'moving-average', ",
        ),
        (
            lambda: QuantConfig(idc=False),
            "idc: expected another value than false; set `enabled` in this section to true or false",
        ),
        (lambda: QuantConfig(budget={}), "QuantConfig: budget: set either size_mb or bops_percent"),
        (lambda: LayerBits(), "LayerBits: the entry has no width; set weight_bits, activation_bits or both"),
    ],
)
def test_settings_that_are_not_valid_are_an_error_of_one_line(make, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as caught:
        make()
    assert "\n" not in str(caught.value)
    assert caught.value.__suppress_context__  # pydantic's text is not shown


def test_settings_have_a_signature():
    assert "weight_bits" in inspect.signature(QuantConfig).parameters
