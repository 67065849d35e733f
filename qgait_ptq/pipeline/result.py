"""The result of a run: simulation, models for runtimes, report, and their files."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import onnx
from torch import fx

from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.capture.captured import Capture
from qgait_ptq.capture.own_code import runs_code
from qgait_ptq.config.recipes import recipe_yaml
from qgait_ptq.config.schema import Recipe
from qgait_ptq.errors import FixedSizeWarning
from qgait_ptq.exporters.torch_program import export_program
from qgait_ptq.graph.frame_inputs import input_nodes, split_inputs
from qgait_ptq.report.page import render_report
from qgait_ptq.report.result_table import result_html, result_line
from qgait_ptq.report.schema import Report
from qgait_ptq.report.showing import show_page
from qgait_ptq.report.writing import write_result
from qgait_ptq.system.json_text import json_text
from qgait_ptq.system.reading import as_path


@dataclass(frozen=True)
class QuantizationResult:
    """A quantized network.

    Attributes:
        simulation: graph with fake-quantize modules, from one input tensor to the embedding.
        report: record of the run.
        onnx_model: content of ``model.onnx``.
        recipe: settings that repeat the run; None if the network came from Python.
        float_model: the float network for the runtime, after equalization.
        captured: capture of the network, with the dimensions that are free.
        sheet: PNG image of calibration silhouettes, for the page; None for raw data.
        work_folder: folder with states of fine-tuning, which `save` removes; None if there are none.
    """

    simulation: fx.GraphModule
    report: Report
    onnx_model: onnx.ModelProto
    recipe: Recipe | None = None
    float_model: onnx.ModelProto | None = None
    captured: Capture | None = None
    sheet: bytes | None = None
    work_folder: Path | None = None

    @cached_property
    def model(self) -> fx.GraphModule:
        """Return the simulation with the network's inputs: ``[n, s, h, w]``, or one tensor for each input."""
        if not input_nodes(self.simulation):
            return self.simulation
        model = copy.deepcopy(self.simulation)
        split_inputs(model)
        return model

    def show(self) -> Path:
        """Open ``report.html`` in the browser, with calibration silhouettes, and the recipe if there is one.

        Returns:
            The path of the page, which is printed if no browser can be opened.
        """
        return show_page(self._page(self.report))

    def __repr__(self) -> str:
        return f"QuantizationResult({result_line(self.report.to_json())})"

    def _repr_html_(self) -> str:
        """Return the table of the result. Notebooks show it."""
        return result_html(self.report.to_json())

    def save(self, folder: str | Path, float_file: bool = False, torch_file: bool = False) -> Path:
        """Write ``model.onnx``, ``report.html``, ``report.json`` and ``recipe.yaml``, if there is one.

        A result that is in the folder is replaced, with all of its files.

        Args:
            folder: output directory; it is created if it does not exist.
            float_file: whether to write ``float.onnx`` too, the network before quantization. It serves for
                comparison or to embed a gallery.
            torch_file: whether to write ``model.pt2`` too, an ExportedProgram for PyTorch. A
                `FixedSizeWarning` and the report say if it takes fewer sizes than ``model.onnx``.

        Returns:
            The output directory.

        Raises:
            ExportError: torch.export refuses the graph, or gives a program that differs from it.
            ConfigError: the folder cannot be written; no files are left behind.
        """
        program = None
        if torch_file and self.captured is not None:
            program = export_program(self.simulation, self.captured)
        notes = program.notes if program else ()
        report = self.report.model_copy(update={"notes": [*self.report.notes, *notes]})
        contents = {
            "model.onnx": self.onnx_model.SerializeToString(),
            "report.json": (json_text(report.to_json(), indent=1) + "\n").encode(),
            "report.html": self._page(report).encode(errors="backslashreplace"),
        }
        if self.recipe is not None:
            contents["recipe.yaml"] = recipe_yaml(self.recipe).encode()
        if float_file and self.float_model is not None:
            contents["float.onnx"] = self.float_model.SerializeToString()
        if program is not None:
            contents["model.pt2"] = program.content
        written = write_result(as_path(folder, "the output directory"), contents)
        if self.work_folder is not None:
            SavedStates.remove(self.work_folder)
        for note in notes:
            warnings.warn(note, FixedSizeWarning, stacklevel=2)
        return written

    def _page(self, report: Report) -> str:
        """Return ``report.html``."""
        recipe = None if self.recipe is None else recipe_yaml(self.recipe)
        options = [] if self.recipe is None or not runs_code(self.recipe.model) else ["--trust-code"]
        device = report.toolkit.device
        options += [] if device is None else [f"--device {device}"]
        return render_report(report.to_json(), recipe, self.sheet, options)
