"""ONNX files that are damaged, or whose metadata or graphs were written to do harm."""

import json
import os

import pytest

import qgait_ptq as qg
from qgait_ptq.cli.verify import examine
from qgait_ptq.errors import ModelError
from qgait_ptq.exporters.onnx_file import read_model
from qgait_ptq.runtime.exact_sessions import open_session
from tests.runtime.small_model import CHANNELS, FRAMES, METADATA, SEQUENCE, save, small_model, use


def test_the_file_of_these_tests_is_whole(tmp_path):
    path = save(small_model(), tmp_path)
    use(path)
    assert qg.Embedder(path, threads=1)(SEQUENCE).shape == (12, CHANNELS)
    examined = examine(path, 1, FRAMES)
    proof, verification = examined.proof, examined.verification
    assert proof.exact
    assert verification.tensors
    assert verification.differing == 0


LONG_INTEGER = int("9" * 4000)
LIES = [
    *((section, None, value) for section in METADATA for value in (None, [], "x", 3)),
    *(("model", field, value) for field in ("raw", "streams") for value in (None, 1, "no")),
    *(("model", "inputs", value) for value in ({}, [3], [{}], [None], None)),
    ("model", "inputs", [{"name": "x", "shape": [4, 3], "kind": "odd"}]),
    ("model", "inputs", [{"name": "x", "shape": "43", "kind": "values"}]),
    ("model", "inputs", [{"name": 3, "shape": [4, 3], "kind": "values"}]),
    *(("model", "submodule", value) for value in ("part", {}, [], {"name": "part"})),
    ("model", "submodule", {"name": [], "given_axis": 0, "result_axis": 0, "result_shape": [1]}),
    *(("model", "frames", value) for value in ("30", 0, -1, True, 1.5, LONG_INTEGER)),
    *(("model", field, value) for field in ("macs", "macs_frames") for value in ("many", None, -1, 1e9)),
    *(("model", field, value) for field in ("channels", "parts") for value in ("5", 0, None)),
    ("model", "macs_frames", 0),
    *(
        ("model", "macs_by_frames", value)
        for value in ({"x": 1}, {"0": 1}, {"12": -1}, {"12": 1.5}, [1], None)
    ),
    ("model", "macs_by_frames", {"1": 1, "2": 1, "3": 1, "4": 1}),
    *(("data", "cut_columns", value) for value in ("10", -1, 0.5, [1])),
    *(("data", "modalities", value) for value in (0, [], ["0"], [-1], None, {"0": 1})),
    *(("data", "metric", value) for value in ("manhattan", None, [], 3)),
    *(("target", "name", value) for value in (None, 3, [])),
    *(("target", "runtimes", value) for value in ("onnxruntime", None, 3, [3], {})),
    *(("pair_sums", "safe", value) for value in ("yes", 1, None)),
]


@pytest.mark.parametrize(("section", "field", "value"), LIES)
def test_metadata_of_another_type_name_the_file_and_the_field(section, field, value, tmp_path):
    metadata = json.loads(json.dumps(METADATA))
    if field is None:
        metadata[section] = value
    else:
        metadata[section][field] = value
    path = save(small_model(metadata), tmp_path)
    name = section if field is None else rf"{section}\.{field}"
    for read in (qg.Embedder, read_model, open_session):
        with pytest.raises(ModelError, match=rf"model\.onnx: its metadata are damaged: {name} is "):
            read(path)


@pytest.mark.parametrize(
    ("changes", "missing"),
    [
        ({"target": {}}, r"target\.name"),
        ({"target": {"name": "x"}}, r"target\.runtimes"),
        ({"model": {"macs": 5}}, r"model\.macs_frames"),
    ],
)
def test_metadata_that_lack_a_field_are_refused(changes, missing, tmp_path):
    path = save(small_model(METADATA | changes), tmp_path)
    with pytest.raises(ModelError, match=rf"model\.onnx: its metadata are damaged: {missing} is missing"):
        qg.Embedder(path)


@pytest.mark.parametrize("section", METADATA)
def test_files_of_older_versions_lack_sections(section, tmp_path):
    metadata = {key: value for key, value in METADATA.items() if key != section}
    use(save(small_model(metadata), tmp_path))


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, '{"model": ' + "9" * 5000 + "}", "[]", "3", "null"])
def test_metadata_that_are_not_a_json_mapping_are_refused(text, tmp_path):
    path = save(small_model(text), tmp_path)
    for read in (qg.Embedder, read_model):
        with pytest.raises(ModelError, match=r"model\.onnx: its metadata are damaged: (not JSON|expected)"):
            read(path)


@pytest.mark.parametrize("text", [b"cut_columns", b"silhouettes", b"embedding", b"conv", b"Transpose"])
def test_names_that_are_not_utf_8_are_refused(text, tmp_path):
    content = small_model().SerializeToString()
    path = save(content.replace(text, b"\xff" + text[1:]), tmp_path)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        read_model(path)
    with pytest.raises(ModelError, match=r"model\.onnx: "):
        use(path)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04" + bytes(40), b"\xff\xfe\x00", bytes(1000)])
def test_other_files_are_refused(content, tmp_path):
    path = save(content, tmp_path)
    for read in (use, lambda path: examine(path, 1, 1)):
        with pytest.raises(ModelError, match=r"model\.onnx: "):
            read(path)


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe.onnx")
    with (tmp_path / "huge.onnx").open("wb") as file:
        file.truncate(2**31 + 1)
    for name in ("pipe.onnx", "huge.onnx", ".", "none.onnx", "a\0b", "n" * 5000):
        for read in (qg.Embedder, read_model):
            with pytest.raises(ModelError, match=r"the model (cannot be read|has .* MiB; the limit)"):
                read(tmp_path / name)


def test_a_file_that_says_falsely_that_it_streams_is_refused(tmp_path):
    model = small_model()
    maximum = model.graph.node[-1]
    maximum.op_type, maximum.name = "ReduceMean", "mean"
    path = save(model, tmp_path)
    qg.Embedder(path, threads=1)(SEQUENCE)
    with pytest.raises(ModelError, match=r"model\.onnx: damaged"):
        qg.Embedder(path, threads=1, longest_piece=1)(SEQUENCE)


def test_layouts_that_are_not_the_file_s_are_refused(tmp_path):
    inputs = [{"name": name, "shape": [4, 3], "kind": "silhouettes"} for name in ("silhouettes", "more")]
    metadata = METADATA | {"model": METADATA["model"] | {"inputs": inputs}}
    path = save(small_model(metadata), tmp_path)
    with pytest.raises(
        ModelError, match=r"its inputs are silhouettes, but its metadata say silhouettes, more"
    ):
        qg.Embedder(path, threads=1)


def test_embeddings_of_another_size_than_the_metadata_say_are_refused(tmp_path):
    metadata = METADATA | {"model": METADATA["model"] | {"parts": 16}}
    embedder = qg.Embedder(save(small_model(metadata), tmp_path), threads=1)
    with pytest.raises(ModelError, match=r"its embeddings \[c, p\] are \[5, 12\], but .* say \[5, 16\]"):
        embedder(SEQUENCE)
