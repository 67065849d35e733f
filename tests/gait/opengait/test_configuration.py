"""What is taken from an OpenGait configuration, and what is refused."""

import pytest
import yaml

from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.opengait.configuration import read_opengait_config


def read(path, data=None, evaluator=None, model="Baseline"):
    values = {"model_cfg": {"model": model}, "data_cfg": data, "evaluator_cfg": evaluator}
    path.write_text(yaml.safe_dump(values))
    return read_opengait_config(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "network.yaml"


def test_metric_protocol_and_length_are_those_of_the_evaluation(path):
    found = read(
        path,
        {"dataset_name": "CASIA-B", "test_dataset_name": "OUMVLP"},
        {"metric": "cos", "sampler": {"sample_type": "all_ordered", "frames_all_limit": 360}},
    )
    assert found.network == "Baseline"
    assert found.data == {"metric": "cosine", "protocol": "oumvlp", "longest": 360, "modality": 0}
    assert found.frames is None


def test_a_configuration_that_says_nothing_leaves_the_defaults(path):
    found = read(path)
    assert found.data == {"metric": "euclidean", "modality": 0}


@pytest.mark.parametrize(
    ("transform", "cut"),
    [
        ([{"type": "BaseSilCuttingTransform"}], {}),
        ([{"type": "BaseSilCuttingTransform", "cutting": 15}], {"cut_columns": 15}),
        ([{"type": "BaseSilTransform"}], {"cut_columns": 0}),
        ({"type": "BaseSilTransform"}, {"cut_columns": 0}),
    ],
)
def test_the_width_of_a_frame_follows_the_transform(path, transform, cut):
    found = read(path, evaluator={"transform": transform})
    assert {name: found.data[name] for name in found.data if name == "cut_columns"} == cut
    assert found.not_applied == ()


def test_a_sampler_of_fixed_length_fixes_the_frame_count(path):
    sampler = {"sample_type": "fixed_ordered", "frames_num_fixed": 30}
    assert read(path, evaluator={"sampler": sampler}).frames == 30


def test_a_transform_that_selects_frames_fixes_the_frame_count(path):
    sampler = {"sample_type": "fixed_ordered", "frames_num_fixed": 501}
    select = {"type": "SelectSequenceCenter", "sequence_length": 16}
    transform = [{"type": "Compose", "trf_cfg": [select, {"type": "GaitGraph1Input"}]}]
    found = read(path, evaluator={"sampler": sampler, "transform": transform})
    assert found.frames == 16
    assert found.not_applied == ("SelectSequenceCenter", "GaitGraph1Input")


def test_a_composed_transform_of_silhouettes_is_applied(path):
    cut = {"type": "BaseSilCuttingTransform", "cutting": 5}
    found = read(path, evaluator={"transform": [{"type": "Compose", "trf_cfg": [cut]}]})
    assert (found.data["cut_columns"], found.not_applied) == (5, ())


def test_the_modality_in_use_is_the_one_that_is_read(path):
    assert read(path, {"data_in_use": [False, True, False]}).data["modality"] == 1


@pytest.mark.parametrize(("in_use", "modality"), [([5, 4], [5, 4]), ([1, 0], [1, 0]), ([2], 2), ([0], 0)])
def test_modalities_can_be_listed_by_number_in_any_order(in_use, modality, path):
    assert read(path, {"data_in_use": in_use}).data["modality"] == modality


def test_several_modalities_are_the_inputs_in_their_order(path):
    transform = [{"type": "BaseSilCuttingTransform", "cutting": 5}, {"type": "NoOperation"}]
    found = read(path, {"data_in_use": [True, False, True]}, {"transform": transform})
    assert (found.data["modality"], found.data["cut_columns"]) == ([0, 2], 5)
    assert "raw" not in found.data
    assert found.not_applied == ()


def test_what_is_not_transformed_is_taken_as_it_is(path):
    assert read(path, evaluator={"transform": [{"type": "NoOperation"}]}).data["raw"] is True


def test_transforms_that_are_not_known_are_named(path):
    assert read(path, evaluator={"transform": [{"type": "BaseRgbTransform"}]}).not_applied == (
        "BaseRgbTransform",
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model_cfg: {}", "not an OpenGait configuration"),
        ("just text", "not an OpenGait configuration"),
        (
            "model_cfg: {model: A}\nevaluator_cfg: {metric: manhattan}",
            "'manhattan'; supported values are euc, cos",
        ),
        ("model_cfg: {model: A}\ndata_cfg: {data_in_use: [false, false]}", "selects no modality"),
        ("model_cfg: {model: A}\ndata_cfg: {data_in_use: true}", "neither a list of true and false nor"),
        ("model_cfg: {model: A}\ndata_cfg: {data_in_use: [true, 1]}", "neither a list of true and false nor"),
        ("model_cfg: {model: A}\ndata_cfg: {data_in_use: [-1]}", "neither a list of true and false nor"),
        ("model_cfg: {model: A}\nevaluator_cfg: {cross_view_gallery: true}", "are not supported; remove it"),
        ("model_cfg: {model: A}\ndata_cfg: [{}, {}]", "data_cfg lists 2 data sets; keep the one"),
        ("model_cfg: {model: A}\nevaluator_cfg: 5", "evaluator_cfg is 5, not a mapping"),
        ("model_cfg: {model: A}\nevaluator_cfg: {transform: [Cut]}", "not a list of mappings"),
    ],
)
def test_wrong_configurations_are_refused_with_the_file(path, text, message):
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"{path}.*{message}"):
        read_opengait_config(path)
