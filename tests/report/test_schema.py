"""The schema of report.json: what is written keeps it, and versions are told apart."""

import json

import pytest
from pydantic import ValidationError

from qgait_ptq.report.reading import read_report
from qgait_ptq.report.schema import SCHEMA_VERSION, Report
from qgait_ptq.system.json_text import json_text

REPORT = {
    "toolkit": {"qgait_ptq": "0.2.0", "torch": "2.13.0"},
    "model": {
        "path": "model.pt",
        "frame_shape": [64, 44],
        "raw": False,
        "inputs": [],
        "frames": None,
        "batch": None,
        "channels": 16,
        "parts": 16,
        "parameters": 10,
        "macs": 100,
        "macs_frames": 30,
        "streams": True,
        "submodule": None,
    },
    "config": {"weight_bits": 8, "activation_bits": 8},
    "target": {"name": "onnxruntime", "runtimes": ["onnxruntime"]},
    "data": {
        "description": "six people",
        "calibration_sequences": 6,
        "test_sequences": 4,
        "test_names": "00",
        "protocol": None,
        "metric": "euclidean",
        "cut_columns": None,
        "modalities": [0],
    },
    "accuracy": {},
    "comparison": {
        "distances": {
            "edges": [0.0, 1.0],
            "float": {"same": [1.0], "different": [0.0]},
            "quantized": {"same": [1.0], "different": [0.0]},
            "pairs": {"same": [[0.1, 0.2]], "different": []},
            "sequences": 4,
        }
    },
    "agreement": {"cosine_mean": 0.99, "cosine_min": 0.9, "sqnr_db": 20.0},
    "size_bytes": {"onnx": 10, "float": 40},
    "parity": {"cosine_min": 1.0, "max_abs": 0.0, "sequences": 4, "single_cosine_min": 1.0},
    "pair_sums": {
        "weight_range": "safe",
        "safe": True,
        "largest_bound": 32640,
        "unsafe_layers": [],
        "unknown_layers": [],
        "differing_additions": [],
    },
    "slow_layers": [],
    "layers": [
        {
            "name": "conv",
            "op": "conv2d",
            "weight_bits": 8,
            "activation_bits": None,
            "integer": True,
            "note": "",
            "parameters": 10,
            "macs": 100,
            "scales": {"weight_scales": [0.1]},
            "equalization_factors": None,
            "sqnr_db": 30.0,
        }
    ],
    "calibration": {"equalized_groups": 0},
    "allocation": {},
    "speed": None,
    "seconds": {"ranges": 0.1},
}


def test_a_report_is_written_as_it_was_given_with_the_version_of_its_schema():
    written = Report.model_validate(REPORT).to_json()
    assert written == {"schema_version": SCHEMA_VERSION, **REPORT, "speed": {}}
    json.dumps(written, allow_nan=False)


def test_the_metadata_have_no_path_no_times_and_no_layers():
    metadata = Report.model_validate(REPORT).metadata()
    assert "path" not in metadata["model"]
    assert metadata.keys().isdisjoint({"seconds", "layers", "parity", "schema_version"})


def test_notes_about_data_are_in_the_report_and_not_in_the_file():
    notes = ["1 folder without a sequence (003/nm-01/180)"]
    report = Report.model_validate({**REPORT, "data": {**REPORT["data"], "notes": notes}})
    assert report.to_json()["data"]["notes"] == notes
    assert report.metadata() == Report.model_validate(REPORT).metadata()


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("agreement", "cosine_mean", 2.0),
        ("parity", "sequences", -1),
        ("pair_sums", "weight_range", "wide"),
        ("target", "name", None),
        ("data", "more", 1),
    ],
)
def test_a_value_that_makes_no_sense_is_not_written(section, key, value):
    wrong = {**REPORT, section: {**REPORT[section], key: value}}
    with pytest.raises(ValidationError, match=f"{section}.{key}"):
        Report.model_validate(wrong)


def test_what_is_written_is_read_and_so_is_a_report_of_version_1(tmp_path):
    (tmp_path / "report.json").write_text(json.dumps(Report.model_validate(REPORT).to_json()))
    assert read_report(tmp_path)["agreement"]["sqnr_db"] == 20.0
    first = {key: value for key, value in REPORT.items() if key != "pair_sums"}
    (tmp_path / "report.json").write_text(json.dumps(first))
    assert read_report(tmp_path)["layers"][0]["name"] == "conv"


def test_the_schema_has_a_description_of_every_section():
    schema = Report.model_json_schema()
    assert all(section.get("description") for section in schema["$defs"].values())


def test_entries_have_the_keys_of_the_file_and_what_is_written_is_valid():
    report = Report.model_validate(REPORT)
    assert report["comparison"]["distances"]["float"] == report.comparison.distances.float_
    assert report["comparison"]["distances"].get("float")["same"] == [1.0]
    assert report["model"]["path"] == "model.pt"  # an entry about the network
    assert report["agreement"].get("nothing", 3) == 3
    for missing in ("nothing", "to_json", "model_fields"):
        with pytest.raises(KeyError):
            report["agreement"][missing]
    assert Report.model_validate(report.to_json()) == report


def test_json_has_no_nan_and_no_infinity():
    text = json_text({"losses": [float("nan"), 1.0], "ratio": (float("inf"),), "name": "NaN", "steps": 3})
    assert json.loads(text) == {"losses": [None, 1.0], "ratio": [None], "name": "NaN", "steps": 3}
