"""Reports that are damaged, old, or were written to do harm."""

import io
import json
import os
from dataclasses import asdict
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from qgait_ptq.cli import compare
from qgait_ptq.errors import ConfigError, QgaitError
from qgait_ptq.report.comparing import compare_reports, short_names
from qgait_ptq.report.reading import read_report
from qgait_ptq.report.runtime_tables import comparison_of_results

LAYER = {
    "name": "stem",
    "op": "conv2d",
    "weight_bits": 4,
    "activation_bits": None,
    "parameters": 100,
    "macs": 2000,
    "scales": {"weight_scales": [0.1]},
    "equalization_factors": [1.0, 2.0],
    "sqnr_db": 30.5,
}
RANKS = {"rank1": {"nm": 90.0, "mean": 90.0}, "rank5": {"mean": 95.0}, "mAP": 80, "mINP": 70.0}
INTERVAL = {"mean": -0.5, "low": -1.0, "high": 0.0, "identities": 9}
REPORT = {
    "toolkit": {"qgait_ptq": "0.1.0"},
    "config": {"weight_bits": 4, "activation_bits": 8, "seed": 0},
    "target": {"name": "onnxruntime", "runtimes": ["onnxruntime"]},
    "data": {
        "description": "walkers",
        "test_sequences": 30,
        "test_names": "abc",
        "test_content": "def",
        "protocol": "casia-b",
        "metric": "euclidean",
    },
    "accuracy": dict.fromkeys(("float", "quantized", "onnx", "onnx_float_gallery"), RANKS),
    "comparison": {"distances": [1], "onnx": {"rank1": INTERVAL}},
    "agreement": {"cosine_mean": 0.99, "cosine_min": 0.98, "sqnr_db": 30.0},
    "size_bytes": {"float": 4000, "onnx": 1000},
    "layers": [LAYER],
    "allocation": {},
    "speed": {"onnx_ms": 3.0, "faster": [2.0, 1.9, 2.1], "runtime": "onnxruntime", "frames": 30},
    "pair_sums": {"safe": True},
}
# Keys that no command reads, and sections with nothing else in them.
UNUSED = {
    *("toolkit", "pair_sums", "allocation", "op", "scales", "identities", "distances", "frames", "seed"),
    *("runtimes", "cosine_min", "rank5", "mINP", "nm", "quantized", "onnx_float_gallery"),
}
VALUES = (
    "x",
    3,
    -1,
    None,
    True,
    [],
    {},
    [[]],
    10**400,
    1e300,
    float("nan"),
    "\ud800",
    "$\\frac$ [/] \x1b[31m",
)


def write(folder, report):
    folder.mkdir(exist_ok=True)
    text = report if isinstance(report, str) else json.dumps(report)
    (folder / "report.json").write_text(text)
    return folder


def places(value, place=()):
    """Where values are in a report."""
    if place:
        yield place
    children = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, child in children:
        yield from places(child, (*place, key))


def changed(place, value):
    report = json.loads(json.dumps(REPORT))
    target = report
    for key in place[:-1]:
        target = target[key]
    target[place[-1]] = value
    return report


def compare_all(*folders):
    """Compare results as the command does; gives the table."""
    names = short_names(folders)
    rows = compare_reports(dict(zip(names, map(read_report, folders), strict=True)))
    json.dumps([asdict(row) for row in rows])
    console = Console(file=io.StringIO(), width=200, force_terminal=True, color_system="truecolor")
    console.print(comparison_of_results(rows))
    return console.file.getvalue()


def run_compare(*arguments):
    """Run the command."""
    return CliRunner().invoke(compare.command, list(map(str, arguments)), standalone_mode=False)


def test_a_whole_report_is_read(tmp_path):
    folder = write(tmp_path / "out", REPORT)
    report = read_report(folder)
    assert report["layers"][0] == {key: LAYER[key] for key in LAYER if key not in ("op", "scales")}
    compare_all(folder)
    (row,) = compare_reports({"out": report})
    assert row.change == (-0.5, -1.0, 0.0)
    assert row.rank1 == 90.0
    assert row.faster == 2.0
    assert row.widths == "W4A8"


@pytest.mark.parametrize("place", list(places(REPORT)), ids=lambda place: ".".join(map(str, place)))
def test_a_value_of_any_kind_is_read_or_refused(place, tmp_path):
    whole, other = write(tmp_path / "whole", REPORT), tmp_path / "out"
    found = []
    for value in VALUES:
        write(other, changed(place, value))
        found += [refusal(other), refusal(whole, other)]
    assert all(error is None or "out" in error for error in found)
    assert set(place) & UNUSED or place == ("size_bytes", "float") or any(found)


def refusal(*folders):
    """The error with which reports are refused; None where they are compared."""
    try:
        compare_all(*folders)
    except QgaitError as error:
        return str(error)
    return None


@pytest.mark.parametrize("place", list(places(REPORT)), ids=lambda place: ".".join(map(str, place)))
def test_a_missing_value_is_filled_in_or_refused(place, tmp_path):
    report = changed(place, None)
    target = report
    for key in place[:-1]:
        target = target[key]
    del target[place[-1]]
    error = refusal(write(tmp_path / "out", report))
    assert error is None or "out" in error


def test_a_page_of_extreme_values_is_drawn(tmp_path):
    extreme = changed(("accuracy", "onnx", "rank1", "mean"), 1e9)
    extreme["size_bytes"]["onnx"] = 2**63
    extreme["speed"] |= {"onnx_ms": -1e9, "runtime": "$\\frac$"}
    folders = [write(tmp_path / "$\\frac$", extreme), write(tmp_path / "whole", REPORT)]
    done = run_compare(*folders, "--html", tmp_path / "page.html")
    assert done.exception is None, done.exception
    assert (tmp_path / "page.html").read_text().count("<svg") == 1
    (folders[1] / "report.json").write_text(json.dumps(extreme))
    done = run_compare(*folders, "--html", tmp_path / "page.html")
    assert done.exception is None, done.exception
    assert (tmp_path / "page.html").read_text().count("<svg") == 2


def test_reports_of_older_versions_lack_keys(tmp_path):
    report = json.loads(json.dumps(REPORT))
    for key in ("pair_sums", "speed", "comparison", "allocation", "toolkit"):
        del report[key]
    del report["data"]["test_names"]
    del report["layers"][0]["equalization_factors"]
    folder = write(tmp_path / "out", report)
    compare_all(folder)
    (row,) = compare_reports({"out": read_report(folder)})
    assert row.change is None
    assert row.faster is None
    write(tmp_path / "out", {"layers": [LAYER]})
    assert len(read_report(folder)["layers"]) == 1
    with pytest.raises(
        ConfigError, match=r"out: report\.json was written by another version and lacks data, "
    ):
        compare_all(folder)


@pytest.mark.parametrize(
    ("report", "message"),
    [
        (changed(("layers", 0, "macs"), "x"), r"report\.json: damaged: layers\.0\.macs: .*, not 'x'"),
        (changed(("accuracy", "onnx", "rank1"), {}), r"damaged: accuracy\.onnx\.rank1\.mean: Field required"),
        (changed(("size_bytes", "onnx"), 10**400), r"damaged: size_bytes\.onnx: "),
        (changed(("data", "description"), "\ud800"), r"damaged: data\.description: "),
        # Python 3.14 has other words for it.
        ("[" * 100_000, r"damaged: the file is not valid JSON \((maximum recursion|Stack overflow)"),
        (
            '{"layers": ' + "[" * 100_000,
            r"damaged: the file is not valid JSON \((max.* recursion|Stack over)",
        ),
        ('{"layers": [' + "9" * 5000 + "]}", r"damaged: the file is not valid JSON \(Exceeds the limit"),
        ('{"layers": {}}', "not a report of quantize: the list of layers is missing"),
        ("[]", "not a report of quantize: the list of layers is missing"),
        ("", "damaged: the file is not valid JSON"),
    ],
)
def test_what_is_wrong_is_named(report, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        read_report(write(tmp_path / "out", report))


@pytest.mark.timeout(60)
def test_what_is_no_regular_file_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="not a result folder of quantize"):
        read_report(tmp_path)
    os.mkfifo(tmp_path / "report.json")
    with pytest.raises(ConfigError, match=r"the report cannot be read \(a named pipe, not a regular file\)"):
        read_report(tmp_path)
    (tmp_path / "report.json").unlink()
    (tmp_path / "report.json").write_bytes(b'{"layers": ["\xff"]}')
    with pytest.raises(ConfigError, match=r"report\.json: the report is not UTF-8 text"):
        read_report(tmp_path)
    with (tmp_path / "report.json").open("wb") as file:
        file.truncate(64 * 10**6 + 1)
    with pytest.raises(ConfigError, match=r"the report has .* MiB; the limit is"):
        read_report(tmp_path)
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for name in ("loop", "n" * 5000):
        assert "not a result folder of quantize" in str(run_compare(tmp_path / name).exception)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("[red]x", "[red]x"),
        ("x[/red]", "x[/red]"),
        ("$\\frac$", "$\\frac$"),
        ("a\x1b[31mb", r"a\x1b[31mb"),
        ("a\nb", r"a\nb"),
        (os.fsdecode(b"a\xff"), r"a\udcff"),
        (":smile:", ":smile:"),
    ],
)
def test_names_of_folders_are_shown_and_not_interpreted(name, shown, tmp_path, monkeypatch):
    """Two folders of the same name are told apart by their paths, which hold slashes."""
    monkeypatch.chdir(tmp_path)
    for folder in (Path(name), Path("other") / Path(name).name):
        folder.mkdir(parents=True)
        write(folder, REPORT)
    table = compare_all(Path(name), Path("other") / Path(name).name)
    assert shown in table
    assert "\x1b[31m" not in table
    assert run_compare(name, "--html", "page.html").exception is None
    assert "\x1b" not in Path("page.html").read_text()
