"""``report.html``: one self-contained page with the content of ``report.json``."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from qgait_ptq.graph.frame_counts import ANY_FRAME_COUNT, parse_frame_counts
from qgait_ptq.report.drawing import DARK, LIGHT
from qgait_ptq.report.evaluated import evaluated_networks, evaluation_lines
from qgait_ptq.report.losses import kept_training, loss_change
from qgait_ptq.report.plots import WORST_LAYERS, has_error, report_figures
from qgait_ptq.report.processors import processors_line
from qgait_ptq.report.widths import allocation_lines, widths_label

Report = Mapping[str, Any]
MEGABYTE = 1e6
LITTLE = 1.0  # points of rank-1 that the verdict calls a small loss
UNDONE = "held-out rank-1 fell; reverted"
HEADINGS = {"float": "float", "quantized": "simulation", "onnx": "file"}


def render_template(name: str, **values: Any) -> str:
    """Fill a template. Values are escaped unless the template says otherwise."""
    environment = Environment(
        loader=PackageLoader("qgait_ptq.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
    )
    return environment.get_template(name).render(light=LIGHT, dark=DARK, **values)


def render_report(
    report: Report, recipe: str | None = None, sheet: bytes | None = None, options: Sequence[str] = ()
) -> str:
    """Return the HTML page of one run.

    Args:
        report: content of ``report.json``.
        recipe: text of ``recipe.yaml``; None if the network came from Python.
        sheet: PNG image of calibration silhouettes; None for raw data.
        options: options of the command that repeats the run from the recipe.
    """
    good, text = verdict(report)
    return render_template(
        "report.html.j2",
        title=_title(report),
        report=report,
        verdict={"good": good, "text": text},
        tiles=list(_tiles(report)),
        headings=[HEADINGS[name] for name in evaluated_networks(report)],
        accuracy=list(_accuracy_rows(report)),
        identities=_identities(report),
        figures=report_figures(report),
        stages=list(_stages(report)),
        notes=list(dict.fromkeys([*report.get("notes", []), *_notes(report)])),
        layers=_layers(report),
        sheet=base64.b64encode(sheet).decode() if sheet else None,
        recipe=recipe,
        repeat_options="".join(f" {option}" for option in options),
        configuration=yaml.safe_dump(report["config"], sort_keys=False),
    )


def verdict(report: Report) -> tuple[bool, str]:
    """Return whether the file ranks about as well as the float network, and a sentence that says so."""
    label, ratio = widths_label(report), report["size_bytes"]["float"] / report["size_bytes"]["onnx"]
    smaller = f"in a file {ratio:.1f} times smaller" if ratio >= 1.05 else "in a file that is not smaller"
    if not report["accuracy"]:
        cosine = report["agreement"]["cosine_mean"]
        return cosine >= 0.99, (
            f"{label}: embeddings agree with the float ones by a mean cosine of {cosine:.4f}, {smaller}. "
            "The data have no gallery and probes, so ranking was not measured."
        )
    before, after = (report["accuracy"][name]["rank1"]["mean"] for name in ("float", "onnx"))
    change = report["comparison"]["onnx"]["rank1"]
    interval = f"95 % interval over people {change['low']:+.2f} to {change['high']:+.2f} points"
    lost = -change["mean"]  # the interval is around this mean over people
    if change["high"] < 0 and lost > LITTLE:
        words = f"loses {lost:.2f} points of rank-1"
    elif change["high"] < 0:
        words = f"loses {lost:.2f} points of rank-1; the loss is small but significant"
    elif change["low"] <= 0 <= change["high"]:
        words = "shows no significant change of rank-1"
    else:
        words = "ranks no worse than the float network"
    return lost <= LITTLE, (
        f"{label}: the file {words} (mean rank-1 {before:.2f} % → {after:.2f} %, {interval}), {smaller}."
    )


def _title(report: Report) -> str:
    path = report["model"].get("path")
    name = str(path).replace("\\", "/").rpartition("/")[2] if path else "network from Python"
    submodule = report["model"].get("submodule")
    subject = f"{name}, submodule {submodule['name']}" if submodule else name
    return f"{subject}, {widths_label(report)} for {report['target']['name']}"


def _tiles(report: Report) -> Iterator[tuple[str, str]]:
    size, agreement, model = report["size_bytes"], report["agreement"], report["model"]
    if report["accuracy"]:
        accuracy = report["accuracy"]
        yield "mean rank-1, file", f"{accuracy['onnx']['rank1']['mean']:.2f} %"
        yield "mAP, file", f"{accuracy['onnx']['mAP']:.2f} %"
    yield "size", f"{size['onnx'] / MEGABYTE:.2f} MB"
    yield "size, float", f"{size['float'] / MEGABYTE:.2f} MB"
    speed = report["speed"]
    if speed:
        yield f"speed in {speed['runtime']}", f"{speed['faster'][0]:.2f}×"
        yield f"time of {speed['frames']} frames", f"{speed['onnx_ms']:.1f} ms"
    yield "embeddings, cosine", f"{agreement['cosine_mean']:.4f}"
    yield "embeddings, SQNR", f"{agreement['sqnr_db']:.1f} dB"
    yield "parameters", f"{model['parameters'] / 1e6:.2f} M"
    yield f"MACs, {model['macs_frames']} frames", f"{model['macs'] / 1e9:.2f} G"
    if model.get("quantized_parameters") is not None:  # reports of version 0.1 do not say
        yield "parameters quantized", f"{_percent(model['quantized_parameters'], model['parameters'])} %"
        yield "MACs on integers", f"{_percent(model['integer_macs'], model['macs'])} %"


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / max(1, whole):.1f}"


def _accuracy_rows(report: Report) -> Iterator[tuple[str, ...]]:
    accuracy = report["accuracy"]
    if not accuracy:
        return
    changes = report["comparison"]["onnx"]
    mixed = accuracy["onnx_float_gallery"]
    for condition in accuracy["float"]["rank1"]:
        values = [accuracy[name]["rank1"][condition] for name in evaluated_networks(report)]
        interval = changes["rank1"] if condition == "mean" else None
        yield _row(f"rank-1 {condition}", values, interval, mixed["rank1"][condition])
    for metric in ("mAP", "mINP"):
        values = [accuracy[name][metric] for name in evaluated_networks(report)]
        yield _row(metric, values, changes.get(metric), mixed[metric])


def _row(
    name: str, values: list[float], interval: Mapping[str, float] | None, mixed: float
) -> tuple[str, ...]:
    change = f"{round(values[-1] - values[0], 2) + 0.0:+.2f}"  # without a minus before zero
    if interval is not None:
        mean = f"{round(interval['mean'], 2) + 0.0:+.2f}"
        around = "" if mean == change else f" by person {mean}"  # people with unequal numbers of probes
        change += f"{around} [{interval['low']:+.2f}, {interval['high']:+.2f}]"
    return (name, *(f"{value:.2f}" for value in values), change, f"{mixed:.2f}")


def _identities(report: Report) -> int:
    return int(report["comparison"]["onnx"]["rank1"]["identities"]) if report["accuracy"] else 0


def _stages(report: Report) -> Iterator[str]:
    config, calibration = report["config"], report["calibration"]
    data, seconds = report["data"], report["seconds"]
    learned = kept_training(calibration)
    descriptions = {
        "data": "data listed",
        "capture": "network captured, simplified, and compared with the original at several sizes",
        "kernels": "a layer run in the runtime on this processor, as a test of its kernels",
        "layer errors": "errors of the layers' outputs",
        "export": "file written and compared with the simulation at several sizes",
        "parity": f"file compared with the simulation on {report['parity']['sequences']} sequences",
        "speed": "file and float network run in turn",
        "sensitivity": "sensitivity of every layer at every width",
        "ranges": f"ranges of activations ({config['observer']}) and weights ({config['weight_observer']})",
        "equalization": f"equalization of channels ({config['equalization']})",
        "rounding": f"rounding of weights ({config['rounding']})"
        + (" with bias correction" if config["bias_correction"] else "")
        + _refined(calibration.get("refined_ranges")),
        "IDC": "IDC, calibration of distances between people: "
        + (UNDONE if calibration.get("undone_for_rank1") else _outcome(calibration.get("idc") or {})),
        "fine-tuning": "fine-tuning: " + ("reverted" if _undone(learned) else "kept"),
        "refit": "refit of the last layers: " + _refit(learned.get("refit") or {}),
        "evaluation": f"evaluation on {data['test_sequences']} test sequences"
        + (f", protocol {data['protocol']}, {data['metric']} distances" if data["protocol"] else ""),
    }
    yield f"{data['calibration_sequences']} calibration sequences, seed {config['seed']}"
    for stage, spent in seconds.items():
        yield f"{descriptions.get(stage, stage)} ({spent:.1f} s)"


def _refined(factors: Mapping[str, float] | None) -> str:
    return "" if factors is None else f"; refined ranges: {len(factors)}"


def _outcome(idc: Mapping[str, Any]) -> str:
    if idc.get("kept", "start") == "start":
        return "it did not improve the held-out identities; reverted"
    return f"{loss_change(idc)} on held-out identities"


def _refit(refit: Mapping[str, Any]) -> str:
    kept = "kept" if refit.get("kept", "start") != "start" else "reverted"
    ranks = refit.get("ranks")
    if ranks is None:
        return kept
    return f"{kept}; training to keep ranks: {'kept' if ranks['kept'] != 'start' else 'reverted'}"


def _undone(learned: Mapping[str, Any]) -> bool:
    return (learned.get("finetune") or {}).get("kept", "start") == "start"


def _notes(report: Report) -> Iterator[str]:
    yield from (f"data: {note}" for note in report["data"].get("notes", ()))
    yield from allocation_lines(report)
    left_out = (report["calibration"].get("idc") or {}).get("left_out")
    if left_out:
        yield str(left_out)
    counts = parse_frame_counts(report["model"].get("frame_counts"), report["model"]["frames"])
    causes = report["model"].get("size_causes") or {}
    if counts.fixed is not None:
        yield (
            f"the file takes {counts}; in evaluation and deployment alike, shorter sequences are repeated in "
            f"a circle, and of longer ones the first frames are taken{_cause(causes, 'frames')}"
        )
    elif counts != ANY_FRAME_COUNT:
        yield (
            f"the file takes {counts}; evaluation left out other sequences, and the Embedder refuses them"
            f"{_cause(causes, 'frames')}"
        )
    for part in report["model"].get("in_float", []):
        stored, everything = part.get("weight_only", 0), report["model"]["parameters"]
        share = f"{_percent(part['parameters'] + stored, everything)} % of the parameters"
        if stored:
            share += f" ({_percent(stored, everything)} % stored as integers)"
        work = _percent(part["macs"], report["model"]["macs"])
        yield f"{part['operator']} in float: {share}, {work} % of the MACs"
    if report["model"]["batch"] is not None:
        yield f"the file takes a batch size of {report['model']['batch']} only{_cause(causes, 'batch')}"
    if report["slow_layers"]:
        yield f"no integer kernel in the runtime for: {', '.join(report['slow_layers'])}"
    for layer in report["layers"]:
        if layer["note"]:
            yield f"{layer['name']}: {layer['note']}"
    parity = report["parity"]
    yield (
        f"lowest cosine between file and simulation: {parity['cosine_min']:.6f}, over "
        f"{parity['sequences']} sequences"
    )
    yield from evaluation_lines(report)
    if "pair_sums" in report:  # reports of version 0.1 do not have it
        yield processors_line(report["pair_sums"])
    if report["speed"].get("noisy"):
        yield "other programs used the machine while speed was measured; 'qgait-ptq bench' measures longer"


def _cause(causes: Mapping[str, str], axis: str) -> str:
    return f"; {causes[axis]}" if axis in causes else ""


def _layers(report: Report) -> list[dict[str, Any]]:
    errors = sorted(layer["sqnr_db"] for layer in report["layers"] if has_error(layer))
    limit = errors[min(WORST_LAYERS, len(errors)) - 1] if errors else float("-inf")
    return [
        {
            "name": layer["name"],
            "op": layer["op"],
            "w": layer["weight_bits"] or "float",
            "a": layer["activation_bits"] or "float",
            "kernel": "integer" if layer["integer"] else "float",
            "mmac": f"{layer['macs'] / 1e6:.1f}",
            "parameters": f"{layer['parameters']:,}",
            "range": _input_range(layer["scales"]),
            "scales": _weight_scales(layer["scales"]),
            "sqnr": "" if layer["sqnr_db"] is None else f"{layer['sqnr_db']:.1f}",
            "worst": has_error(layer) and layer["sqnr_db"] <= limit,
        }
        for layer in report["layers"]
    ]


def _input_range(scales: Mapping[str, Any]) -> str:
    ends = scales.get("activation_range")
    return "" if ends is None else f"{ends[0]:.3g} … {ends[1]:.3g}"


def _weight_scales(scales: Mapping[str, Any]) -> str:
    values = scales.get("weight_scales")
    return "" if not values else f"{min(values):.2g} … {max(values):.2g}"
