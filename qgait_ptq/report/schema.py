"""The schema of ``report.json``, section by section.

Version 2. Version 1 (toolkit 0.1.0) had no ``schema_version`` and no ``pair_sums``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from qgait_ptq.report.result_table import result_line
from qgait_ptq.report.showing import show_page

SCHEMA_VERSION: Literal[2] = 2
Percent = Annotated[float, Field(ge=-0.001, le=100.001)]  # means are rounded
Cosine = Annotated[float, Field(ge=-1.001, le=1.001)]
Count = Annotated[int, Field(ge=0)]
Width = Annotated[int, Field(ge=1, le=32)]


class Section(BaseModel):
    """A section of the report."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=(), allow_inf_nan=True)

    def __getitem__(self, name: str) -> Any:
        """Return an entry by its key in ``report.json``, as in version 0.1."""
        field = self._field(name)
        if field is None:
            raise KeyError(name)
        return getattr(self, field)

    def get(self, name: str, default: Any = None) -> Any:
        """Return an entry by its key, or a default."""
        field = self._field(name)
        return default if field is None else getattr(self, field)

    def _field(self, key: str) -> str | None:
        """Return the name of the field with a key in ``report.json``; None if there is none."""
        for name, field in type(self).model_fields.items():
            if key == (field.alias or name):
                return name
        return key if key in (self.model_extra or {}) else None


class Toolkit(Section):
    """Versions of the packages that wrote the file, and the device that they computed on."""

    qgait_ptq: str
    torch: str
    device: str | None = None


class InputPart(Section):
    """One input of a network with several. ``largest``: the largest integer that it may hold, if known."""

    name: str
    shape: list[int]
    kind: str
    largest: Count | None = None


class FloatOperator(Section):
    """Operators of one kind that compute in float: their parameters and multiply-accumulates.

    ``parameters`` are stored in float, and ``weight_only`` as integers.
    """

    operator: str
    parameters: Count
    macs: Count
    weight_only: Count = 0


class AcceptedFrameCounts(Section):
    """Frame counts that the file takes. ``repeats``: how often shorter sequences are repeated first."""

    shortest: int
    longest: int | None
    repeats: dict[str, int]


class Model(Section):
    """The network. ``path``, ``kind`` and ``sha256`` describe its file; a caller can add entries.

    ``size_causes`` says what fixes or limits ``batch`` and ``frames``, where it is known. ``macs`` are those
    of one sequence of ``macs_frames`` frames, and ``macs_by_frames`` has those of other frame counts.
    """

    model_config = ConfigDict(frozen=True, extra="allow", protected_namespaces=())

    frame_shape: list[int]
    raw: bool
    inputs: list[InputPart]
    frames: int | None
    frame_counts: AcceptedFrameCounts | None = None
    batch: int | None
    size_causes: dict[str, str] = Field(default_factory=dict)
    channels: Count
    parts: Count
    parameters: Count
    quantized_parameters: Count | None = None
    weight_only_parameters: Count = 0
    macs: Count
    integer_macs: Count | None = None
    in_float: list[FloatOperator] = []
    macs_frames: Count
    macs_by_frames: dict[str, Count] = Field(default_factory=dict)
    streams: bool
    submodule: dict[str, Any] | None


class RuntimeTarget(Section):
    """The target, and the runtimes that its files run in."""

    name: str
    runtimes: list[str]


class Data(Section):
    """Calibration and test sequences.

    ``test_names`` is a digest of the names of test sequences. ``test_content`` is a digest of their names,
    their values, and their use as gallery or probes.
    """

    description: str
    calibration_sequences: Count
    test_sequences: Count
    test_names: str
    test_content: str | None = None
    protocol: str | None
    metric: str
    cut_columns: int | None
    modalities: list[int]
    longest: Count | None = None
    notes: list[str] = Field(default_factory=list)  # what was left out, and what to check; one line a reason


class AccuracyOf(Section):
    """Accuracy in percent. Ranks have one entry for each set of probes, and a ``mean``."""

    rank1: dict[str, Percent]
    rank5: dict[str, Percent]
    rank10: dict[str, Percent]
    mAP: Percent  # noqa: N815 - the field's name
    mINP: Percent  # noqa: N815
    cmc: list[Percent]


class Difference(Section):
    """Paired difference from float in points: mean, 95 % interval, and the number of identities."""

    mean: float
    low: float
    high: float
    identities: Count


class Changes(Section):
    """Changes by quantization."""

    rank1: Difference
    mAP: Difference  # noqa: N815


class Shares(Section):
    """Share of pairs of sequences in each bin, for pairs of the same and of different people."""

    same: list[float]
    different: list[float]


class Pairs(Section):
    """Single distances (float, quantized) of pairs of the same and of different people."""

    same: list[list[float]]
    different: list[list[float]]


class Distances(Section):
    """Histograms of distances between sequences, before and after."""

    edges: list[float]
    float_: Shares = Field(alias="float")
    quantized: Shares
    pairs: Pairs
    sequences: Count


class Comparison(Section):
    """Paired comparison of float and quantized. Data without gallery and probes have only distances."""

    distances: Distances
    quantized: Changes | None = None
    onnx: Changes | None = None


class Agreement(Section):
    """Agreement of the file's embeddings with float."""

    cosine_mean: Cosine
    cosine_min: Cosine
    sqnr_db: float


class Evaluation(Section):
    """How the test sequences were embedded.

    ``float_runtime``: ``onnxruntime`` if the float file was proven equal to the float network, else
    ``torch``. ``simulated_sequences``: number of test sequences on which the simulation was evaluated.
    """

    float_runtime: Literal["onnxruntime", "torch"]
    simulated_sequences: Count


class ParityOf(Section):
    """Agreement of the file in the runtime with the simulation."""

    cosine_min: Cosine
    max_abs: float
    sequences: Count
    single_cosine_min: Cosine


class PairSumsOf(Section):
    """Proof of whether the file gives the same integers on every processor."""

    weight_range: Literal["safe", "full"]
    safe: bool
    largest_bound: Count
    unsafe_layers: list[str]
    unknown_layers: list[str]
    differing_additions: list[str]


class Scales(Section):
    """Scales of a layer. ``weight_scales`` has one entry for each output channel of each weight."""

    activation_scale: float | None = None
    activation_zero_point: int | None = None
    activation_range: list[float] | None = None
    weight_scales: list[float] | None = None


class Layer(Section):
    """A layer with weights: widths, cost, and its error.

    ``weight_only``: the operator computes in float, and only its weights can be quantized.
    """

    name: str
    op: str
    weight_bits: Width | None
    activation_bits: Width | None
    integer: bool
    weight_only: bool = False
    note: str
    parameters: Count
    macs: Count
    scales: Scales
    equalization_factors: list[float] | None
    sqnr_db: float | None


class Speed(Section):
    """CPU time of one sequence in ms, measured briefly. ``faster`` has median and quartiles."""

    runtime: str
    threads: Count
    frames: Count
    float_ms: float
    onnx_ms: float
    faster: list[float]
    noisy: bool


class Report(Section):
    """``report.json``, and the source of tables, page and metadata."""

    schema_version: Literal[2] = SCHEMA_VERSION
    toolkit: Toolkit
    model: Model
    config: dict[str, Any]
    target: RuntimeTarget
    data: Data
    accuracy: dict[str, AccuracyOf]
    comparison: Comparison
    agreement: Agreement
    evaluation: Evaluation | None = None
    size_bytes: dict[str, Count]
    parity: ParityOf
    pair_sums: PairSumsOf
    slow_layers: list[str]
    notes: list[str] = []
    layers: list[Layer]
    calibration: dict[str, Any]
    allocation: dict[str, Any]
    speed: Annotated[Speed | None, BeforeValidator(lambda speed: speed or None)]
    seconds: dict[str, float]

    def __repr__(self) -> str:
        return f"Report({result_line(self.to_json())})"

    def show(self) -> Path:
        """Open ``report.html`` in the browser, without silhouettes and recipe; see `QuantizationResult.show`.

        Returns:
            The path of the page, which is printed if no browser can be opened.
        """
        from qgait_ptq.report.page import render_report  # here: matplotlib takes a while to import

        return show_page(render_report(self.to_json()))

    def to_json(self) -> dict[str, Any]:
        """Return a dictionary for JSON. Entries that were not set are left out."""
        content = self.model_dump(by_alias=True, exclude_unset=True)
        return {"schema_version": self.schema_version, **content, "speed": content["speed"] or {}}

    def metadata(self) -> dict[str, Any]:
        """Return the metadata of the file. It has no times and paths, so that a repeated run is identical."""
        kept = ("toolkit", "model", "config", "target", "data", "accuracy", "agreement", "pair_sums")
        metadata = {key: value for key, value in self.to_json().items() if key in kept}
        for name in ("path", "size_causes"):  # causes name lines of files
            metadata["model"].pop(name, None)
        metadata["data"].pop("description")
        for name in ("notes", "test_content"):
            metadata["data"].pop(name, None)
        return metadata

    def float_metadata(self, runtimes: tuple[str, ...]) -> dict[str, Any]:
        """Return the metadata of the float file, which may run in any runtime."""
        metadata = self.metadata()
        kept = {key: metadata[key] for key in ("toolkit", "data")}
        model = {**metadata["model"], "streams": False}
        target = {"name": "float", "runtimes": list(runtimes)}
        return {**kept, "model": model, "target": target, "pair_sums": {"safe": True}}
