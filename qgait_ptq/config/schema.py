"""The configuration: one validated model, the same from Python, the command line and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, model_validator

Bits = Annotated[int, Field(ge=2, le=8)]
InputBits = Annotated[int, Field(ge=1, le=8)]
ActivationObserver = Literal["minmax", "moving-average", "percentile", "mse", "histogram"]
WeightObserver = Literal["minmax", "percentile", "mse"]
Metric = Literal["euclidean", "cosine"]
# Written out, so that a command line needs no torch to know them; a test compares them with the table.
PROTOCOL_NAMES = ("casia-b", "oumvlp", "gait3d", "grew")
EqualizationName = Literal["none", "weights", "activations"]
RoundingName = Literal["nearest", "gptq", "qronos"]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0)]
Rate = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Modality = Annotated[int, Field(ge=0)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class LayerBits(_Model):
    """Widths of one layer that differ from the rest.

    Attributes:
        weight_bits: of its weight; None leaves what the rest of the configuration says.
        activation_bits: of its input.
    """

    weight_bits: Bits | None = None
    activation_bits: Bits | None = None


class IdcConfig(_Model):
    """Stage 1, inter-class distance-guided calibration.

    Attributes:
        enabled: None runs it where the calibration set has at least 8 identities with 2 sequences.
        neg_weight: of distances between different people.
        pos_weight: of distances between sequences of one person.
        anchor_weight: of the embeddings themselves.
        neighbour_weight: of the distribution over nearest neighbours.
        steps: at most.
        learning_rate: of scales and zero_points.
        bias_learning_rate: of biases.
        identities: P of the P×K batches.
        sequences: K.
        frames: of each sequence, consecutive.
        held_out: share of the identities that no gradient sees, for choosing the step.
        evaluate_every: steps between two looks at them.
        patience: so many looks in a row without improvement end it; each goes back to the best step and
            halves the learning rates.
        temperature: of the soft quantizer; 0 is straight through.
        memory_mb: of activations held for the backward pass, roughly.
    """

    enabled: bool | None = None
    neg_weight: Weight = 1.0
    pos_weight: Weight = 0.25
    anchor_weight: Weight = 1.0
    neighbour_weight: Weight = 0.0
    steps: Positive = 60
    learning_rate: Rate = 2e-3
    bias_learning_rate: Rate = 2e-3
    identities: Annotated[int, Field(ge=2)] = 8
    sequences: Annotated[int, Field(ge=2)] = 2
    frames: Positive = 24
    held_out: Share = 0.25
    evaluate_every: Positive = 6
    patience: Positive = 5
    temperature: Weight = 0.0
    memory_mb: Positive = 2000


class FinetuneConfig(_Model):
    """Stage 2, reconstruction and fine-tuning with the soft quantizer.

    Attributes:
        enabled: whether it runs.
        block_steps: for each block; 0 leaves the block-by-block part out.
        granularity: blocks, or single layers.
        block_weights: ``rounding`` learns whether weights round up or down, ``latent`` moves them.
        block_learning_rate: of weights in the block-by-block part, in rounding steps.
        drop_probability: of quantization, in the block-by-block part.
        learn_ranges: whether scales of activations, and biases, learn in the block-by-block part.
        steps: of the end-to-end part, at most; 0 leaves it out.
        weight_learning_rate: of weights end to end, in rounding steps.
        learning_rate: of scales, zero_points and biases end to end.
        temperature_start: of the soft quantizer end to end.
        temperature_end: at the last step.
        patience: as of stage 1.
        memory_mb: of block activations held in memory; more go to disk.
    """

    enabled: bool = False
    block_steps: Annotated[int, Field(ge=0)] = 200
    granularity: Literal["layer", "block"] = "block"
    block_weights: Literal["rounding", "latent"] = "latent"
    block_learning_rate: Rate = 4e-3
    drop_probability: Annotated[float, Field(ge=0, lt=1)] = 0.5
    learn_ranges: bool = True
    steps: Annotated[int, Field(ge=0)] = 60
    weight_learning_rate: Rate = 4e-3
    learning_rate: Rate = 5e-4
    temperature_start: Weight = 1.0
    temperature_end: Weight = 3.0
    patience: Positive = 5
    memory_mb: Positive = 2000


class BudgetConfig(_Model):
    """What the network may cost; the widths of its layers are chosen for it.

    Attributes:
        size_mb: of the file, in 10^6 bytes. Widths of weights are chosen; activations have the width that
            they are given.
        bops_percent: bit operations (multiply-accumulates × weight bits × activation bits), in percent of
            those with 8 bits everywhere. Widths of weights and activations are chosen.
    """

    size_mb: Rate | None = None
    bops_percent: Annotated[float, Field(gt=0, le=100)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> BudgetConfig:
        if (self.size_mb is None) == (self.bops_percent is None):
            raise ValueError("a budget is size_mb or bops_percent, one of both")
        return self


class QuantConfig(_Model):
    """How a network is quantized.

    Example:
        >>> QuantConfig(weight_bits=4, activation_bits=4).label
        'W4A4'

    Attributes:
        weight_bits: width of weights, 2 to 8.
        activation_bits: width of the inputs of weighted layers, 2 to 8.
        edge_bits: width of both in the first and the last weighted layer, and in all that read the network's
            inputs.
        input_bits: width of the input itself, 1 to 8; None leaves it to `edge_bits`. With 1 bit, silhouettes
            are split at half: a file for onnxruntime then looks its first layer up in a table, if that is a
            small convolution.
        elementwise_bits: width of tensors that no weighted layer reads, such as the branches of a residual
            addition.
        observer: how ranges of activations are found.
        weight_observer: how ranges of weights are found.
        equalization: scales channels between layers before anything else, following the size of weights or of
            activations.
        rounding: of weights: to nearest, or with compensated errors (GPTQ, Qronos).
        bias_correction: whether biases take up mean errors.
        correction_frames: consecutive frames of each sequence that equalization, rounding, bias correction
            and blocks see.
        idc: stage 1.
        finetune: stage 2.
        layers: module path (a shell pattern; a module names all layers in it) or ``operator:conv3d`` → widths
            of layers that differ.
        budget: chooses widths of layers by their sensitivity, the first and the last included; those that
            `layers` names keep what it says.
        target_accuracy: points of rank-1 of held-out identities against float, 0 or less: the smallest file
            that keeps it.
        max_drop: points of rank-1 of held-out identities that may be lost: widths are raised until no more
            are.
        include: patterns, as of `layers`: quantize these layers only.
        exclude: patterns: leave these layers in float.
        target: runtime profile.
        weight_range: ``safe`` limits weights so that a file gives the same integers on every processor;
            ``full`` is for processors with VNNI and for ARM only. Targets whose kernels never add in 16 bits
            ignore it.
        input_type: what the file takes: silhouettes as uint8, 0..255, where the target has such files, or as
            float32 in [0, 1]. Other values are float32 in any case.
        calibration_sequences: how many sequences are observed.
        calibration_frames: at most so many frames of each.
        minimum_agreement: mean cosine between quantized and float embeddings below which the result is
            refused: such a network no longer ranks.
        minimum_parity: cosine between the file in the runtime and the simulation below which the file is
            refused.
        seed: of the choice of calibration sequences, of batches and of the held-out identities.
    """

    weight_bits: Bits = 8
    activation_bits: Bits = 8
    edge_bits: Bits = 8
    input_bits: InputBits | None = None
    elementwise_bits: Bits = 8
    observer: ActivationObserver = "mse"
    weight_observer: WeightObserver = "mse"
    equalization: EqualizationName = "activations"
    rounding: RoundingName = "qronos"
    bias_correction: bool = True
    correction_frames: Positive = 30
    idc: IdcConfig = IdcConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    layers: dict[str, LayerBits] = Field(default_factory=dict)
    budget: BudgetConfig | None = None
    target_accuracy: Annotated[float, Field(le=0)] | None = None
    max_drop: Weight | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    target: str = "onnxruntime"
    weight_range: Literal["safe", "full"] = "safe"
    input_type: Literal["uint8", "float32"] = "uint8"
    calibration_sequences: Positive = 128
    calibration_frames: Positive = 60
    minimum_agreement: Annotated[float, Field(ge=-1, le=1)] = 0.5
    minimum_parity: Annotated[float, Field(ge=-1, le=1)] = 0.999
    seed: int = 0

    @model_validator(mode="after")
    def _one_goal(self) -> QuantConfig:
        goals = ("budget", "target_accuracy", "max_drop")
        given = [name for name in goals if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} exclude each other: each of them chooses widths")
        return self

    @property
    def label(self) -> str:
        """``W4A8``: widths of weights and activations."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def needs_held_out(self) -> bool:
        """Whether rank-1 of identities decides that nothing is fitted to."""
        return self.target_accuracy is not None or self.max_drop is not None


class ModelSource(_Model):
    """Where a network comes from.

    Attributes:
        path: of the model file.
        factory: ``module:callable`` that makes the network, for files that hold weights only;
            ``opengait:CLASS`` for a network of OpenGait.
        opengait_config: OpenGait's yaml for the network.
        arguments: keyword arguments of the factory.
        checkpoint_key: dotted path of the weights in a training checkpoint, such as ``state_dict_ema``; None
            takes those at the usual key, or the only ones that fit the network.
        adapter: ``opengait`` or ``module:class``; None where the network takes ``[n, s, h, w]`` itself.
        trust_code: whether the run was allowed to run code that the model file or the recipe names. It is a
            record: a recipe never grants it, the command line does. ``trust_pickle`` is its former name.
        frames: fixed frame count; None lets it be free.
        output: names the embedding among several outputs, such as ``inference_feat.embeddings``.
        submodule: module path of the one part that is captured and quantized; None takes the whole network.
        sha256: of the file, written by the toolkit.
    """

    path: Path
    factory: str | None = None
    opengait_config: Path | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    checkpoint_key: str | None = None
    adapter: str | None = None
    trust_code: bool = Field(default=False, validation_alias=AliasChoices("trust_code", "trust_pickle"))
    frames: Annotated[int, Field(ge=1)] | None = None
    output: str | None = None
    submodule: str | None = None
    sha256: str | None = None


class DataSource(_Model):
    """Where sequences come from; without a root, the built-in synthetic walkers.

    Attributes:
        root: of an OpenGait layout.
        partition: partition json; None looks for ``partition.json`` in the root.
        protocol: of the evaluation.
        metric: distance of embeddings.
        cut_columns: cut from each side of a frame; None cuts the empty columns of square silhouettes.
        longest: frames of a sequence that are used at most.
        modality: which of several array files in a folder is read, in the order of their names, from 0; a
            list of them for a network of several inputs.
        raw: take arrays as they are, such as poses, instead of as silhouettes.
    """

    root: Path | None = None
    partition: Path | None = None
    protocol: str = "casia-b"
    metric: Metric = "euclidean"
    cut_columns: Annotated[int, Field(ge=0)] | None = None
    longest: Annotated[int, Field(ge=1)] = 720
    modality: Modality | Annotated[tuple[Modality, ...], Field(min_length=1)] = 0
    raw: bool = False

    @property
    def modalities(self) -> tuple[int, ...]:
        """All that are read, in the order in which the network takes them."""
        return self.modality if isinstance(self.modality, tuple) else (self.modality,)

    @model_validator(mode="after")
    def _each_once(self) -> DataSource:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modality {list(self.modalities)} names a file twice")
        return self


class Recipe(_Model):
    """Everything needed to repeat a run; ``recipe.yaml``."""

    model: ModelSource
    data: DataSource = DataSource()
    quantization: QuantConfig = QuantConfig()
