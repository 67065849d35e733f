"""The configuration: one validated model for Python, the command line and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AliasChoices, Field, model_validator

from qgait_ptq.config.validation import Settings

Bits = Annotated[int, Field(ge=2, le=8)]
InputBits = Annotated[int, Field(ge=1, le=8)]
ActivationObserver = Literal["minmax", "moving-average", "percentile", "mse", "histogram"]
WeightObserver = Literal["minmax", "percentile", "mse"]
Metric = Literal["euclidean", "cosine"]
# Copies of the table's names, so that the command line needs no torch. A test compares them with the table.
PROTOCOL_NAMES = ("casia-b", "oumvlp", "gait3d", "grew")
EqualizationName = Literal["none", "weights", "activations"]
RoundingName = Literal["nearest", "gptq", "qronos"]
Positive = Annotated[int, Field(ge=1)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
LARGEST_SEED = 2**62  # what the generators of torch take, with room for the seeds of stages
Share = Annotated[float, Field(gt=0, lt=1)]
Modality = Annotated[int, Field(ge=0)]
GOALS = ("budget", "target_accuracy", "max_drop")  # settings that choose widths; one at most


class LayerBits(Settings):
    """Widths of one layer that differ from the rest of the configuration.

    Attributes:
        weight_bits: width of its weight, 2 to 8; None for the configuration's width.
        activation_bits: width of its input, 2 to 8; None for the configuration's width.
    """

    weight_bits: Bits | None = None
    activation_bits: Bits | None = None

    @model_validator(mode="after")
    def _has_a_width(self) -> LayerBits:
        if self.weight_bits is None and self.activation_bits is None:
            raise ValueError("the entry has no width; set weight_bits, activation_bits or both")
        return self


class IdcConfig(Settings):
    """Stage 1, inter-class distance-guided calibration.

    Attributes:
        enabled: whether IDC runs. None: it runs if at least 8 identities of the calibration set have 2
            sequences.
        neg_weight: loss weight of distances between different people.
        pos_weight: loss weight of distances between sequences of one person.
        anchor_weight: loss weight of the difference from float embeddings.
        neighbour_weight: loss weight of the distribution over nearest neighbours.
        steps: number of steps.
        learning_rate: largest learning rate of scales and zero-points; it falls to zero.
        bias_learning_rate: largest learning rate of biases.
        identities: number P of identities in a P×K batch.
        sequences: number K of sequences of each identity in a batch.
        frames: largest number of consecutive frames of a labelled clip.
        batch_frames: largest number of frames of a clip in a training batch.
        held_out: share of held-out identities, which choose between the network before and after the stage.
        averaged: share of the steps, the last ones, whose trained values are averaged; 0 for no average.
        temperature: temperature of the soft quantizer; 0 is straight-through.
        memory_mb: approximate limit in MB of activations for the backward pass.
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
    batch_frames: Positive = 8
    held_out: Share = 0.25
    averaged: Annotated[float, Field(ge=0, le=1)] = 0.2
    temperature: Weight = 0.0
    memory_mb: Positive = 2000


class FinetuneConfig(Settings):
    """Stage 2, reconstruction and fine-tuning with the soft quantizer.

    Attributes:
        enabled: whether fine-tuning runs.
        block_steps: steps for each block; 0 for no training of blocks.
        granularity: unit of block training: ``block`` or ``layer``.
        block_weights: trained quantity: ``rounding`` for up or down, ``latent`` for the weights themselves.
        block_learning_rate: learning rate of weights in block training, in rounding steps.
        drop_probability: probability that a value is not quantized in block training.
        learn_ranges: whether block training includes scales of activations, and biases.
        unlabelled: largest number of sequences to learn from. All but the last layers learn without labels.
        clips: number of clips in an end-to-end batch without labels.
        frames: frames of each of these clips.
        steps: number of end-to-end steps; 0 for no end-to-end training.
        labelled_every: one end-to-end step of this number takes a labelled batch with the loss of IDC; 0 for
            none. The others take clips without labels, and imitate the float embeddings.
        weight_learning_rate: largest learning rate of weights in end-to-end training, in rounding steps. The
            root mean square of a step is a quarter of it, as is usual with Adam.
        learning_rate: largest learning rate of scales, zero-points and biases in end-to-end training.
        averaged: share of the end-to-end steps, the last ones, whose trained values are averaged; 0 for no
            average.
        refit: largest number of sequences on which the layers that give the embedding are refitted in the
            end; 0 for no refit.
        rank_weight: weight of the rank loss, with which the refitted layers are trained further where labels
            are known; 0 for none.
        rank_steps: number of steps of this training.
        rank_learning_rate: its largest learning rate of weights, in rounding steps.
        temperature_start: temperature of the soft quantizer at the first end-to-end step.
        temperature_end: temperature of the soft quantizer at the last end-to-end step.
        memory_mb: limit in MB of block activations in memory, and of frames without labels. More are stored
            on disk.
    """

    enabled: bool = False
    unlabelled: Positive = 2000
    clips: Positive = 4
    frames: Positive = 6
    block_steps: Annotated[int, Field(ge=0)] = 0
    granularity: Literal["layer", "block"] = "block"
    block_weights: Literal["rounding", "latent"] = "latent"
    block_learning_rate: Rate = 4e-3
    drop_probability: Annotated[float, Field(ge=0, lt=1)] = 0.5
    learn_ranges: bool = True
    steps: Annotated[int, Field(ge=0)] = 3000
    labelled_every: Annotated[int, Field(ge=0)] = 20
    weight_learning_rate: Rate = 1e-2
    learning_rate: Rate = 2e-3
    averaged: Annotated[float, Field(ge=0, le=1)] = 0.2
    refit: Annotated[int, Field(ge=0)] = 2000
    rank_weight: Weight = 3.0
    rank_steps: Positive = 300
    rank_learning_rate: Rate = 5e-2
    temperature_start: Weight = 0.0
    temperature_end: Weight = 0.0
    memory_mb: Positive = 2000


class BudgetConfig(Settings):
    """Limit of the cost of a network. The widths of its layers are chosen to meet it.

    Attributes:
        size_mb: limit of the file size in 10^6 bytes. Widths of weights are chosen; activations keep the
            configured width.
        bops_percent: limit of bit operations, in percent of those with 8 bits everywhere. Widths of weights
            and activations are chosen.
    """

    size_mb: Rate | None = None
    bops_percent: Annotated[float, Field(gt=0, le=100)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> BudgetConfig:
        if (self.size_mb is None) == (self.bops_percent is None):
            raise ValueError("set either size_mb or bops_percent")
        return self


class QuantConfig(Settings):
    """Settings of quantization.

    Example:
        >>> QuantConfig(weight_bits=4, activation_bits=4).label
        'W4A4'

    Attributes:
        weight_bits: width of weights, 2 to 8.
        activation_bits: width of the inputs of weighted layers, 2 to 8.
        edge_bits: width of weights and inputs in edge layers, 2 to 8.
        input_bits: width of the network's input, 1 to 8; None for `edge_bits`. With 1 bit, silhouettes are
            thresholded at half. A file for onnxruntime then computes a small first convolution by table
            look-up.
        elementwise_bits: width of tensors that other operators than layers read, such as the branches of a
            residual addition, 2 to 8. A layer that reads the same tensor reads it at `activation_bits`.
        observer: observer of activations. Silhouettes at the input have their full range.
        weight_observer: observer of weights.
        equalization: criterion for equalization: size of ``weights``, size of ``activations``, or ``none``.
        rounding: rounding of weights: to nearest, or compensated (GPTQ, Qronos).
        bias_correction: whether rounding adds mean errors to biases. Fine-tuning adapts biases in any case.
        refined_ranges: whether rounding also chooses the ranges of activations below 8 bits that small layers
            read, by the error that it leaves. Only with ``rounding: qronos``.
        correction_frames: consecutive frames of each sequence for equalization, rounding, bias correction and
            block training.
        idc: settings of stage 1.
        finetune: settings of stage 2.
        layers: widths of single layers. A key is a module path (a shell pattern; a module names all layers in
            it) or an operator such as ``operator:conv3d``.
        budget: limit that widths are chosen for, by sensitivity and including edge layers. Widths from
            `layers` are kept.
        target_accuracy: lowest accepted change of held-out rank-1 in points, 0 or less. The smallest file
            that meets it is chosen.
        max_drop: largest accepted drop of held-out rank-1 in points. Widths are raised until it is met.
        include: patterns of layers, as in `layers`. Only these are quantized; empty for all.
        exclude: patterns of layers, as in `layers`, that stay in float.
        target: name of the target.
        weight_range: ``safe`` limits weights so that a file gives the same integers on every processor.
            ``full`` is for processors with VNNI and for ARM only. Targets whose kernels never add in 16 bits
            ignore this setting.
        input_type: input of the file: silhouettes as ``uint8`` in 0..255, if the target supports it, or as
            ``float32`` in [0, 1]. Other values are always float32.
        calibration_sequences: number of calibration sequences.
        calibration_frames: largest number of frames of a calibration sequence.
        minimum_agreement: lowest accepted mean cosine between quantized and float embeddings. Below it, the
            ranking has collapsed.
        minimum_parity: lowest accepted cosine between the file in the runtime and the simulation. If it is
            positive, a file for onnxruntime may also differ by at most a tenth of the distance of a sequence
            from the mean embedding. Larger differences are accepted only if rounding errors explain them.
        evaluate_simulation: whether to evaluate the simulation on all test sequences. Without it, the
            simulation runs only on the sample on which the file is compared with it.
        seed: random seed for choosing calibration sequences, batches and held-out identities.
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
    refined_ranges: bool = False
    correction_frames: Positive = 30
    idc: IdcConfig = IdcConfig()
    finetune: FinetuneConfig = FinetuneConfig()
    layers: dict[str, LayerBits] = Field(default_factory=dict)
    budget: BudgetConfig | None = None
    target_accuracy: Annotated[float, Field(le=0, allow_inf_nan=False)] | None = None
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
    evaluate_simulation: bool = False
    seed: Annotated[int, Field(ge=0, le=LARGEST_SEED)] = 0

    @model_validator(mode="after")
    def _one_goal(self) -> QuantConfig:
        chosen = [name for name in GOALS if getattr(self, name) is not None]
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(chosen)} exclude each other, because each chooses widths; set one"
            )
        return self

    @model_validator(mode="after")
    def _has_a_loss(self) -> QuantConfig:
        idc = self.idc
        weights = idc.neg_weight, idc.pos_weight, idc.anchor_weight, idc.neighbour_weight
        if (idc.enabled is not False or self.finetune.enabled) and not any(weights):
            raise ValueError(
                "idc: all weights of the loss are 0. IDC and fine-tuning learn by them, so set one, or turn "
                "both stages off"
            )
        return self

    @model_validator(mode="after")
    def _refines_what_rounding_leaves(self) -> QuantConfig:
        if self.refined_ranges and self.rounding != "qronos":
            raise ValueError(
                "refined_ranges chooses ranges by the error that rounding: qronos leaves, but rounding is "
                f"{self.rounding}; set one of them"
            )
        return self

    @property
    def label(self) -> str:
        """Return widths of weights and activations, such as ``W4A8``."""
        return f"W{self.weight_bits}A{self.activation_bits}"

    @property
    def needs_held_out(self) -> bool:
        """Return whether held-out rank-1 decides on widths or stages."""
        return self.target_accuracy is not None or self.max_drop is not None


class ModelSource(Settings):
    """Source of a network.

    Attributes:
        path: path of the model file.
        factory: ``module:callable`` that makes the network, for files with weights only, or
            ``opengait:CLASS`` for a network of OpenGait.
        opengait_config: YAML file of OpenGait for the network.
        arguments: keyword arguments of the factory.
        checkpoint_key: dotted path of the weights in a training checkpoint, such as ``state_dict_ema``. None
            takes those at the usual key, or the only ones that fit the network.
        adapter: ``opengait`` or ``module:class``; None if the network takes ``[n, s, h, w]``.
        trust_code: whether the run was allowed to run code that the model file or the recipe names. This is
            only a record: the command line grants trust, a recipe cannot. Its former name is
            ``trust_pickle``.
        frames: fixed frame count; None for any.
        output: name of the embedding among several outputs, such as ``inference_feat.embeddings``.
        submodule: module path of the submodule that is captured and quantized alone; None for the complete
            network.
        sha256: SHA-256 of the model file, written by the toolkit.
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


class DataSource(Settings):
    """Source of sequences. Without a root, it is the built-in synthetic walkers.

    Attributes:
        root: root folder of a data set in the OpenGait layout.
        partition: path of the partition file; None for ``partition.json`` in the root.
        unlabelled: root folder of more sequences for fine-tuning, in the same layout; labels are not read.
        protocol: protocol of the evaluation.
        metric: distance between embeddings, by which the evaluation ranks and training compares.
        cut_columns: columns to cut from each side of a frame; None for the empty columns of square
            silhouettes.
        longest: largest number of frames of a sequence, from its beginning; None for all.
        modality: index of the array file in a sequence folder, sorted by name, from 0; a list for a network
            with several inputs.
        raw: whether arrays are unscaled values, such as poses, instead of silhouettes.
        test_walkers: number of synthetic walkers to test on; None for 20.
        cache: whether rendered walkers are kept in the user's cache folder.
    """

    root: Path | None = None
    partition: Path | None = None
    unlabelled: Path | None = None
    protocol: str = "casia-b"
    metric: Metric = "euclidean"
    cut_columns: Annotated[int, Field(ge=0)] | None = None
    longest: Annotated[int, Field(ge=1)] | None = 720
    modality: Modality | Annotated[tuple[Modality, ...], Field(min_length=1)] = 0
    raw: bool = False
    test_walkers: Annotated[int, Field(ge=2, le=10_000)] | None = None
    cache: bool = True

    @property
    def modalities(self) -> tuple[int, ...]:
        """Return all modalities, in the order of the network's inputs."""
        return self.modality if isinstance(self.modality, tuple) else (self.modality,)

    @model_validator(mode="after")
    def _each_once(self) -> DataSource:
        if len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modality {list(self.modalities)} names a file twice; name each once")
        return self


class Recipe(Settings):
    """All settings that repeat a run, stored as ``recipe.yaml``."""

    model: ModelSource
    data: DataSource = DataSource()
    quantization: QuantConfig = QuantConfig()
