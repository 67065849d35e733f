"""``report.html`` and the page of a comparison, looked at in a real browser."""

import io
import re
import shutil

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import qgait_ptq as qg
from qgait_ptq.errors import ConfigError
from qgait_ptq.gait.data.directory import load_directory
from qgait_ptq.gait.data.sequences import Reading
from qgait_ptq.report.comparing import (
    compare_reports,
    comparison_figures,
    pareto_positions,
    render_comparison,
    short_names,
)
from qgait_ptq.report.page import render_report, verdict
from qgait_ptq.report.plain import plain
from qgait_ptq.report.plots import WORST_LAYERS, layer_figure, sensitivity_figure
from qgait_ptq.report.terminal import stage_lines
from tests.conftest import SHALLOW, make_gaitbase

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
WIDTHS = (400, 900, 1600)  # a phone, a tablet, a desk


@pytest.fixture(scope="module")
def result(walkers_root):
    data = load_directory(walkers_root, reading=Reading(longest=24))
    return qg.quantize(
        make_gaitbase(**SHALLOW), data, qg.QuantConfig(weight_bits=4, calibration_sequences=12)
    )


@pytest.fixture(scope="module")
def report(result):
    return result.report.to_json()


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine")
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
        )
        yield browser
        browser.close()


def open_page(browser, path, width, scheme):
    """The page, what its console said, and what it asked for."""
    page = browser.new_context(color_scheme=scheme, viewport={"width": width, "height": 900}).new_page()
    said, requested = [], []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requested.append(request.url))
    page.goto(path.as_uri())
    return page, said, requested


@pytest.fixture(scope="module")
def pages(result, report, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pages")
    result.save(folder / "out")
    rows = compare_reports({"a": report, "b": report})
    (folder / "compared.html").write_text(render_comparison(rows, "walkers"))
    return {"report": folder / "out" / "report.html", "comparison": folder / "compared.html"}


@pytest.mark.parametrize("name", ["report", "comparison"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_is_quiet_asks_for_nothing_and_fits(browser, pages, name, width, scheme):
    page, said, requested = open_page(browser, pages[name], width, scheme)
    assert said == []
    assert requested == [pages[name].as_uri()]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_picture_shows_something_in_both_schemes(browser, pages, scheme):
    page, *_ = open_page(browser, pages["report"], 900, scheme)
    figures = page.locator("figure")
    assert figures.count() >= 5  # CMC, histograms, scatter, layers, silhouettes
    for number in range(figures.count()):
        picture = figures.nth(number).locator("svg, img").first
        image = np.asarray(Image.open(io.BytesIO(picture.screenshot())).convert("L"), dtype=int)
        background = np.bincount(image.ravel()).argmax()
        assert (abs(image - background) > 40).mean() > 0.005
    page.context.close()


def test_every_figure_is_described_and_says_how_to_read_it(pages):
    html = pages["report"].read_text()
    figures = re.findall(r"<figure.*?</figure>", html, flags=re.DOTALL)
    for figure in figures:
        assert re.search(r"<figcaption>.{20,}</figcaption>", figure)
        assert 'role="img" aria-label="' in figure or 'alt="' in figure


def test_colours_come_from_the_page(pages):
    html = pages["report"].read_text()
    assert "#0101" not in html
    assert "var(--float)" in html


def test_the_page_is_one_file_without_a_script(pages):
    html = pages["report"].read_text()
    assert "<script" not in html
    assert not re.search(r"""(src|href)=["'](?!data:|#)""", html)


def test_the_same_report_gives_the_same_page(report):
    assert render_report(report) == render_report(report)


def test_names_are_escaped(report):
    changed = {**report, "data": {**report["data"], "description": "<b>people</b>"}}
    assert "&lt;b&gt;people&lt;/b&gt;" in render_report(changed)


def test_without_gallery_and_probes_the_page_speaks_of_agreement(report):
    without = {
        **report,
        "accuracy": {},
        "comparison": {"distances": report["comparison"]["distances"]},
    }
    assert "ranking was not measured" in render_report(without)


@pytest.mark.parametrize(
    ("after", "low", "high", "words", "good"),
    [
        (80.0, -0.5, 0.5, "shows no significant change of rank-1", True),
        (79.5, -0.9, -0.1, "the loss is small but significant", True),
        (70.0, -12.0, -8.0, "loses 10.00 points", False),
        (81.0, 0.2, 1.5, "no worse", True),
    ],
)
def test_the_verdict_says_what_was_lost_and_whether_by_chance(report, after, low, high, words, good):
    rank1 = {"nm": 80.0, "mean": 80.0}
    changed = {
        **report,
        "accuracy": {
            **report["accuracy"],
            "float": {**report["accuracy"]["float"], "rank1": rank1},
            "onnx": {**report["accuracy"]["onnx"], "rank1": {"nm": after, "mean": after}},
        },
        "comparison": {"onnx": {"rank1": {"mean": after - 80, "low": low, "high": high, "identities": 9}}},
    }
    found, text = verdict(changed)
    assert words in text
    assert found is good


def test_the_verdict_belongs_to_the_interval_beside_it(report):
    """With unequal numbers of probes, the mean over people can have another sign than that over probes."""
    onnx = report["accuracy"]["onnx"]
    better = onnx["rank1"] | {"mean": report["accuracy"]["float"]["rank1"]["mean"] + 0.1}
    changes = {"rank1": {"mean": -0.5, "low": -0.9, "high": -0.1, "identities": 9}}
    changed = {
        **report,
        "accuracy": {**report["accuracy"], "onnx": {**onnx, "rank1": better}},
        "comparison": {**report["comparison"], "onnx": {**report["comparison"]["onnx"], **changes}},
    }
    good, text = verdict(changed)
    assert good
    assert "loses 0.50 points of rank-1" in text
    assert "+0.10 by person -0.50 [-0.90, -0.10]" in render_report(changed)


def test_training_that_was_reverted_for_rank_1_is_not_called_kept(report):
    losses = {"held_out_loss": {"start": 0.5, "end": 0.4}, "kept": "end"}
    learned = {"idc": losses, "finetune": {**losses, "sequences": 9, "judged_by": "9 others"}}
    seconds = {"IDC": 1.0, "fine-tuning": 2.0}
    kept = {**report, "calibration": learned, "seconds": seconds}
    undone = {**kept, "calibration": {**learned, "undone_for_rank1": True}}
    assert "loss 0.5000 → 0.4000" in render_report(kept)
    assert len(list(stage_lines(learned))) == 2
    page = render_report(undone)
    assert "loss 0.5000 → 0.4000" not in page
    assert "fine-tuning: reverted" in page
    assert "IDC, calibration of distances between people: held-out rank-1 fell; reverted" in page
    assert list(stage_lines(undone["calibration"])) == []


@pytest.mark.parametrize("name", ["$x_$", r"$\frac$", "a\x1b[31mb", "\udcff"])
def test_names_of_layers_are_drawn_as_they_are(name, report):
    """Matplotlib would typeset the text between dollar signs, or fail."""
    layers = [{**layer, "name": name} for layer in report["layers"]]
    entry = {"kind": "weights", "layers": [name], "bits": 4, "distance_error": 0.0}
    for figure in (
        layer_figure({**report, "layers": layers}),
        sensitivity_figure([entry, {**entry, "bits": 2}]),
    ):
        assert plain(name).replace("\\", "") in figure.svg.replace("\\", "")


def test_layers_without_an_error_are_not_among_the_worst(report):
    layers = [{**layer, "sqnr_db": 200.0} for layer in report["layers"]]
    assert render_report(report).count('<tr class="worst"') == WORST_LAYERS
    assert '<tr class="worst"' not in render_report({**report, "layers": layers})


def test_the_command_that_repeats_the_run_has_the_options_that_it_needs(report):
    page = render_report(report, "model: {}", None, ["--trust-code", "--device cpu"])
    assert "quantize --recipe recipe.yaml --trust-code --device cpu --out again" in page


def test_a_file_that_grew_is_not_called_smaller(report):
    size = {"float": 80, "onnx": 100}
    assert "in a file that is not smaller" in verdict({**report, "size_bytes": size})[1]


def test_times_of_sequences_of_different_lengths_share_no_axis(report):
    speed = {"runtime": "onnxruntime", "onnx_ms": 3.0, "faster": [2.0, 1.0, 3.0], "frames": 30}
    same, shorter = {**report, "speed": speed}, {**report, "speed": {**speed, "frames": 4}}
    assert len(comparison_figures(compare_reports({"a": same, "b": same}))) == 2
    assert len(comparison_figures(compare_reports({"a": same, "b": shorter}))) == 1


def test_the_float_accuracy_of_each_result_is_shown(report):
    other = {**report, "accuracy": {**report["accuracy"], "float": {**report["accuracy"]["float"]}}}
    other["accuracy"]["float"]["rank1"] = {**other["accuracy"]["float"]["rank1"], "mean": 12.34}
    page = render_comparison(compare_reports({"a": report, "b": other}), "walkers")
    assert "<td>12.34</td>" in page
    assert f"<td>{report['accuracy']['float']['rank1']['mean']:.2f}</td>" in page


def test_a_result_given_twice_has_two_rows(tmp_path):
    assert short_names([tmp_path / "a", tmp_path / "b", tmp_path / "a"]) == [
        f"{tmp_path}/a (1)", "b", f"{tmp_path}/a (2)"
    ]  # fmt: skip


def test_results_of_different_test_sets_are_not_compared(report):
    other = {**report, "data": {**report["data"], "test_sequences": 7}}
    shorter, older = ({**report, "data": {**report["data"], "longest": longest}} for longest in (3, None))
    with pytest.raises(ConfigError, match=r"different data .*; longest 24 and 3\)"):
        compare_reports({"a": report, "b": shorter})
    assert len(compare_reports({"a": report, "b": older})) == 2  # older reports do not say
    mirrored, unnamed = (
        {**report, "data": {**report["data"], "test_content": content, "description": ""}}
        for content in ("a", "b")
    )
    message = (
        r"different data \(\d+ sequences, \w+; .*; the values of the sequences, or their use .* differ\)"
    )
    with pytest.raises(ConfigError, match=message):
        compare_reports({"a": mirrored, "b": unnamed})
    moved = {**report, "data": {**report["data"], "description": "the same, elsewhere"}}
    assert len(compare_reports({"a": report, "b": moved})) == 2
    with pytest.raises(ConfigError, match=r"different data .*, 7 sequences"):
        compare_reports({"a": report, "b": other})


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 9)), min_size=1, max_size=12))
def test_what_is_on_the_front_is_beaten_by_nothing(points):
    costs, qualities = zip(*points, strict=True)
    front = {points[i] for i in pareto_positions(costs, qualities)}
    for point in points:
        beaten = any(o != point and o[0] <= point[0] and o[1] >= point[1] for o in points)
        assert (point in front) == (not beaten)
