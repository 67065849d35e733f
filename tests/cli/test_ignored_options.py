"""An option is used or refused, never ignored."""

import pytest

from qgait_ptq.cli.inputs import data_of_file, load_data
from qgait_ptq.cli.recipe import build_recipe
from qgait_ptq.config.schema import DataSource
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.walkers import loading
from qgait_ptq.runtime.embedder import Embedder
from qgait_ptq.system.progress import Silent
from tests.cli.test_cli import assert_refused, run


@pytest.mark.parametrize(
    "option",
    [
        ("--factory", "no:thing"),
        ("--frames", 3),
        ("--output", "other"),
        ("--device", "cpu"),
        ("--adapter", "opengait"),
    ],
)
def test_options_of_a_float_network_are_refused_for_a_file(option, eight_bit_file, walkers_root):
    done = run("evaluate", eight_bit_file, "--data", walkers_root, *option)
    assert_refused(done, f"these options are for a float network, not for an ONNX file: {option[0]}")


def test_data_are_read_as_those_that_calibrated_the_file(eight_bit_file, walkers_root):
    """Silhouettes that are read as raw values would be evaluated without a word, far from their figures."""
    done = run("evaluate", eight_bit_file, "--data", walkers_root, "--raw")
    assert_refused(done, "was calibrated with raw: False, not True")
    done = run("evaluate", eight_bit_file, "--data", walkers_root, "--modality", 1)
    assert_refused(done, "was calibrated with modality: [0], not [1]")


def test_settings_of_a_file_are_taken_where_the_user_gives_none(eight_bit_file, walkers_root):
    embedder = Embedder(eight_bit_file)
    embedder.raw, embedder.modalities = True, (2, 0)
    embedder.metadata = {"data": {"metric": "cosine", "cut_columns": 3}}
    source = data_of_file(DataSource(root=walkers_root), embedder)
    taken = (source.raw, source.modalities, source.metric, source.cut_columns)
    assert taken == (True, (2, 0), "cosine", 3)
    assert data_of_file(DataSource(root=walkers_root, metric="euclidean"), embedder).metric == "euclidean"
    assert data_of_file(DataSource(), embedder).metric == "cosine"
    same = DataSource(root=walkers_root, raw=True, modality=(2, 0), cut_columns=0)
    assert data_of_file(same, embedder).raw
    assert data_of_file(same, embedder).cut_columns == 0  # the data can be cut already


@pytest.mark.parametrize(
    ("recorded", "given", "read"),
    [
        ({"longest": None}, {}, None),  # as `load_directory` reads: all frames
        ({"longest": 24}, {}, 24),
        ({}, {}, 720),  # files of older versions do not say
        ({"longest": None}, {"longest": 12}, 12),
        ({"longest": 24}, {"longest": None}, None),
    ],
)
def test_a_file_is_evaluated_on_as_many_frames_as_its_report(recorded, given, read, eight_bit_file):
    embedder = Embedder(eight_bit_file)
    embedder.metadata = {"data": recorded}
    assert data_of_file(DataSource(root="data", **given), embedder).longest == read


def test_a_recipe_can_ask_for_all_frames(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("model: {path: weights.pt}\ndata: {root: data, longest: null}\n")
    assert build_recipe(None, recipe, {}).data.longest is None


def test_a_recipe_that_names_code_can_be_used_with_a_file(eight_bit_file, walkers_root, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        f"model: {{path: weights.pt, factory: no.such:thing}}\ndata: {{root: {walkers_root}}}\n"
    )
    refused = run("evaluate", eight_bit_file, "--recipe", recipe)
    assert_refused(refused, "add --trust-code")
    done = run("evaluate", eight_bit_file, "--recipe", recipe, "--trust-code", "--json")
    assert done.returncode == 0, done.stderr


def test_a_configuration_of_opengait_says_nothing_about_the_built_in_walkers(tmp_path):
    config = tmp_path / "gaitbase.yaml"
    config.write_text("data_cfg: {dataset_name: OUMVLP, dataset_root: x}\nmodel_cfg: {model: Baseline}\n")
    values = {"opengait_config": config, "root": None}
    assert build_recipe(tmp_path / "weights.pt", None, dict(values)).data.protocol == "casia-b"
    values["root"] = tmp_path
    assert build_recipe(tmp_path / "weights.pt", None, values).data.protocol == "oumvlp"


def test_inspect_refuses_options_of_a_plan_for_a_result(tmp_path):
    done = run("inspect", "--against", tmp_path, "--bits", 4, "--height", 32)
    assert_refused(done, "does not take options of a plan: --bits, --height")


def test_inspect_refuses_a_height_beside_shapes_of_inputs(tmp_path):
    done = run("inspect", tmp_path / "weights.pt", "--input", "32x22", "--height", 99)
    assert_refused(done, "excludes other options of the shape: --height")


def test_resuming_without_fine_tuning_is_refused(tmp_path):
    done = run("quantize", tmp_path / "weights.pt", "--resume", "--out", tmp_path / "out")
    assert_refused(done, "--resume continues an interrupted fine-tuning")


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ({"protocol": "gait3d"}, "--protocol"),
        ({"cut_columns": 0}, "--cut-columns"),
        ({"longest": 30}, "longest"),
        ({"raw": True}, "--raw"),
    ],
)
def test_settings_that_the_built_in_walkers_do_not_have_are_refused(setting, shown):
    with pytest.raises(ConfigError, match=f"^{shown} is not for the built-in walkers"):
        load_data(DataSource(**setting), Silent())


def test_the_built_in_walkers_are_compared_by_the_given_metric(monkeypatch):
    monkeypatch.setattr(loading, "CALIBRATION_WALKERS", 1)
    monkeypatch.setattr(loading, "TEST_VIEWS", 1)
    data = load_data(DataSource(metric="cosine", test_walkers=2), Silent())
    assert data.metric == "cosine"


def test_a_run_that_asks_for_too_much_memory_is_told_so():
    words = ("--factory", "qgait_ptq.gait.zoo:gaitset_small", "--height", 100_000_000)
    done = run("inspect", "examples/models/gaitset-small.pt", *words)
    assert done.returncode == 2
    assert "there is not enough memory for this (Unable to allocate" in done.stderr
