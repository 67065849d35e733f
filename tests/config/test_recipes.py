"""Recipes that are damaged, or were written to do harm."""

import os

import pytest
import yaml
from click.testing import CliRunner
from hypothesis import assume, given
from hypothesis import strategies as st

from qgait_ptq.cli import inspect
from qgait_ptq.config.recipes import find_line, parse, read_recipe, read_yaml, recipe_yaml
from qgait_ptq.config.schema import Recipe
from qgait_ptq.config.yaml_reading import load_yaml
from qgait_ptq.errors import ConfigError

NINES = ",".join(["*{}"] * 9)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{NINES.replace('{}', before)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
CHAIN = "a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 500))


def write(tmp_path, text):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    return path


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a:\n  " + "[" * 5000, r"line 2: nested deeper than 32 levels"),
        ("- " * 5000, r"line 1: nested deeper than 32 levels"),
        ("a: " + "{b: " * 3000, r"line 1: nested deeper than 32 levels"),
        (CHAIN, r"line 31: nested deeper than 32 levels"),
        (BOMB, r"line 5: more than 20000 values"),
        ("a: [" + "1," * 100_000 + "]", r"line 1: more than 20000 values"),
        ("a: &a [*a]", r"line 1: an alias inside the value that it names"),
        ("a: &a {b: *a}", r"line 1: an alias inside the value that it names"),
        ("a: *b", r"line 1: not valid YAML: found undefined alias"),
        ("a: 1\nb: " + "9" * 5000, r"line 2: not a valid int"),
        ("a: 0x" + "f" * 5000, r"line 1: an integer beyond 64 bits"),
        ("a: 1\nb: {c: 1, d: 2,\n c: 3}", r"line 3: the key 'c' occurs twice"),
        ("a: {b: 1}\na: {c: 1}", r"line 2: the key 'a' occurs twice"),
        ("a: !!int 0b_", r"line 1: not a valid int: '0b_'"),
        ("a: !!int x", r"line 1: not a valid int: 'x'"),
        ("a: !!float x", r"line 1: not a valid float: 'x'"),
        ("a: !!bool x", r"line 1: not a valid bool: 'x'"),
        ("a: !!timestamp x", r"line 1: not valid YAML: could not determine a constructor"),
        ("a: !!binary eA==", r"line 1: not valid YAML: could not determine a constructor"),
        ("a: !!set {b}", r"line 1: not valid YAML: could not determine a constructor"),
        (
            "a: !!python/object/apply:os.getcwd []",
            r"line 1: not valid YAML: could not determine a constructor",
        ),
        ('a: "\\0"', r"line 1: a text with a zero byte"),
        ('a: "\\ud800"', r"line 1: not a valid str"),
        ("? [a]\n: b", r"line 1: not valid YAML: .*unhashable key"),
        ("#" * 1_000_001, r"the recipe has 1.0 MiB; the limit is 1.0 MiB"),
    ],
    ids=lambda value: value[:20],
)
def test_hostile_recipes_are_refused_with_their_line(text, message, tmp_path):
    with pytest.raises(ConfigError, match=rf"recipe\.yaml(, |: ){message}"):
        read_recipe(write(tmp_path, text))


def test_bytes_that_are_not_utf_8_are_refused(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_bytes(b"model: {path: \xff}")
    with pytest.raises(ConfigError, match=r"recipe\.yaml: the recipe is not UTF-8 text \(byte 14: "):
        read_recipe(path)


@pytest.mark.timeout(60)
def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", ".", "a\0b", "n" * 5000):
        with pytest.raises(ConfigError, match="the recipe cannot be read"):
            read_recipe(tmp_path / name)


VALUES_OF_1_2 = {
    "1e-3": 0.001,
    "1.5e3": 1500.0,
    "-.inf": -float("inf"),
    ".5": 0.5,
    "010": 10,
    "0o10": 8,
    "0x10": 16,
    "+7": 7,
    "true": True,
    "False": False,
    "~": None,
    "": None,
    **{
        text: text
        for text in ("on", "off", "yes", "No", "y", "1:30", "1_000", "0b1", "=", "1e", "2020-01-01")
    },
}


@pytest.mark.parametrize("text", VALUES_OF_1_2)
def test_values_are_those_of_yaml_1_2(text, tmp_path):
    values = read_yaml(write(tmp_path, f"value: {text}"), "the recipe")
    assert values == {"value": VALUES_OF_1_2[text]}
    assert type(values["value"]) is type(VALUES_OF_1_2[text])


@given(st.text(max_size=12) | st.sampled_from([*VALUES_OF_1_2, "null", "<<", "#", "a: b", "1E5", ".NaN"]))
def test_text_stays_text_in_a_recipe(text):
    assume(text.isprintable())
    recipe = Recipe.model_validate({"model": {"path": "m", "arguments": {"value": text}}})
    assert load_yaml(recipe_yaml(recipe))["model"]["arguments"] == {"value": text}


def test_configurations_of_opengait_are_read_as_by_opengait(tmp_path):
    """One of its own has a key twice."""
    path = write(tmp_path, "a: on\nb: 010\nc: 1e-3\nd: 1\nd: 2")
    assert read_yaml(path, "the configuration", as_opengait=True) == {"a": True, "b": 8, "c": "1e-3", "d": 2}


def test_keys_that_are_no_repetition_are_read(tmp_path):
    text = "a: {1: x, '1': y}\nb: &b {k: 0}\nc: {d: &d {<<: *b, k: 1}}\ne: {<<: *d}"
    values = read_yaml(write(tmp_path, text), "the recipe")
    assert values["a"] == {1: "x", "1": "y"}
    assert values["c"] == {"d": {"k": 1}}


@pytest.mark.parametrize(
    "text",
    [
        "quantization: {input_bits: true}",
        "quantization: {seed: false}",
        "quantization: {finetune: {steps: true}}",
        "data: {modality: true}",
        "data: {modality: [true, false]}",
        "data: {root: true}",
        "model: {frames: true}",
    ],
)
def test_true_and_false_are_no_numbers(text, tmp_path):
    values = {"model": {"path": "m"}} | read_recipe(write(tmp_path, text))
    values["model"] = {"path": "m", **values["model"]}
    with pytest.raises(ConfigError, match=r"expected another value than (true|false)"):
        parse(Recipe, values, "recipe")


@pytest.mark.parametrize("date", ["2020-01-01", "2020-13-45", "2020-01-01 10:00:00"])
def test_dates_stay_text(date, tmp_path):
    text = f"model: {{path: {date.replace(' ', 'T')}, sha256: {date}, arguments: {{when: {date}}}}}"
    recipe = parse(Recipe, read_recipe(write(tmp_path, text)), "recipe")
    assert recipe.model.sha256 == recipe.model.arguments["when"] == date
    assert yaml.safe_load(recipe_yaml(recipe))["model"]["arguments"] == {"when": date}


def test_whole_numbers_stay_keys_of_arguments(tmp_path):
    text = "model: {path: m, arguments: {strides: {0: 2, 1: 1}, sizes: [8, 8]}}"
    recipe = parse(Recipe, read_recipe(write(tmp_path, text)), "recipe")
    again = parse(Recipe, read_recipe(write(tmp_path, recipe_yaml(recipe))), "recipe")
    assert again.model.arguments == {"strides": {0: 2, 1: 1}, "sizes": [8, 8]}


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("a=[", "expected the node content"),
        ("a=!!python/name:os.system", "constructor"),
        ("a=" + "[" * 50, "nested"),
        ("a", "NAME"),
    ],
)
def test_arguments_on_the_command_line_are_plain_values(value, message):
    options = ["model.pt", "--model", "torch.nn:Linear", "--model-argument", value, "--trust-code"]
    done = CliRunner().invoke(inspect.command, options)
    assert done.exit_code == 2
    assert message in done.output


def test_aliases_and_merges_of_reasonable_size_are_read(tmp_path):
    text = "few: &few {seed: 3}\nmore: {<<: *few, weight_bits: 4}\nsame: [*few, *few]"
    values = read_yaml(write(tmp_path, text), "the recipe")
    assert values == {"few": {"seed": 3}, "more": {"seed": 3, "weight_bits": 4}, "same": [{"seed": 3}] * 2}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {}\nmodel: [1]", r"line 2: model: expected a mapping, not \[1\]"),
        ("model: path", r"line 1: model: expected a mapping, not 'path'"),
        ("data: 3", r"line 1: data: expected a mapping, not 3"),
        ("quantization:\n- a", r"line 1: quantization: expected a mapping"),
        ("quantization:\n  idc: [1]", r"line 2: quantization.idc: expected a mapping"),
        ("quantization:\n  finetune: 1", r"line 2: quantization.finetune: expected a mapping"),
        ("model:\n  arguments: [3]", r"line 2: model.arguments: expected a mapping"),
        ("model:\n  opengait_config: 3", r"line 2: model.opengait_config: expected a path, not 3"),
    ],
)
def test_sections_of_another_kind_are_refused_before_options_are_merged_in(text, message, tmp_path):
    path = write(tmp_path, text)
    for arguments in ([], ["--weight-bits", "4"]):
        options = ["model.pt", "--recipe", str(path), *arguments]
        done = CliRunner().invoke(inspect.command, options, standalone_mode=False)
        assert isinstance(done.exception, ConfigError), done.exception
        with pytest.raises(ConfigError, match=message):
            raise done.exception


def test_errors_stay_short(tmp_path):
    path = write(tmp_path, "model: {path: m}\nquantization:\n  include: [" + "1," * 1000 + "]\n")
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, read_recipe(path), "recipe", path)
    assert len(str(caught.value)) < 200
    with pytest.raises(ConfigError, match=r"weight_bits: .*(a very large int|int instance with)"):
        parse(
            Recipe, {"model": {"path": "m"}, "quantization": {"seed": "x", "weight_bits": 16**5000}}, "recipe"
        )
    with pytest.raises(ConfigError) as caught:
        parse(Recipe, {"x" * 10_000: 1}, "recipe")
    assert len(str(caught.value)) < 400


def test_a_file_that_changed_has_no_lines(tmp_path):
    assert find_line(tmp_path / "gone.yaml", ["model"]) is None
    assert find_line(write(tmp_path, "[" * 5000), ["model"]) is None
