from pathlib import Path

import pytest

from qgait_ptq.config import ModelSource, QuantConfig, Recipe, parse, read_recipe, recipe_yaml
from qgait_ptq.errors import ConfigError


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
        ({"wieght_bits": 4}, "wieght_bits.*not permitted"),
        ({"layers": {"a": {"bits": 3}}}, "layers.a.bits"),
        ({"calibration_sequences": 0}, "calibration_sequences"),
    ],
)
def test_what_is_wrong_is_named(values, message):
    with pytest.raises(ConfigError, match=message):
        parse(QuantConfig, values, "recipe.yaml")


@pytest.mark.parametrize(
    ("text", "message"), [("a: [", "not YAML"), ("- 1", "a recipe is a mapping"), ("3", "mapping")]
)
def test_broken_recipes_are_refused(text, message, tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        read_recipe(path)


def test_a_missing_recipe_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="cannot be read"):
        read_recipe(tmp_path / "none.yaml")
