"""The configuration: one validated model, the same from Python, the command line and YAML."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qgait_ptq.errors import ConfigError

Bits = Annotated[int, Field(ge=2, le=8)]
ActivationObserver = Literal["minmax", "moving-average", "percentile", "mse", "histogram"]
WeightObserver = Literal["minmax", "mse"]


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


class QuantConfig(_Model):
    """How a network is quantized.

    Example:
        >>> QuantConfig(weight_bits=4, activation_bits=4).label
        'W4A4'

    Attributes:
        weight_bits: width of weights, 2 to 8.
        activation_bits: width of the inputs of weighted layers, 2 to 8.
        edge_bits: width of both in the first and the last weighted layer.
        elementwise_bits: width of tensors that no weighted layer reads, such as the branches of a residual
            addition.
        observer: how ranges of activations are found.
        weight_observer: how ranges of weights are found.
        layers: module path (shell patterns) → widths of layers that differ.
        target: runtime profile.
        calibration_sequences: how many sequences are observed.
        calibration_frames: at most so many frames of each.
        minimum_agreement: mean cosine between quantized and float embeddings below which the result is
            refused: such a network no longer ranks.
        minimum_parity: cosine between the file in the runtime and the simulation below which the file is
            refused.
        seed: of the choice of calibration sequences.
    """

    weight_bits: Bits = 8
    activation_bits: Bits = 8
    edge_bits: Bits = 8
    elementwise_bits: Bits = 8
    observer: ActivationObserver = "mse"
    weight_observer: WeightObserver = "minmax"
    layers: dict[str, LayerBits] = Field(default_factory=dict)
    target: str = "onnxruntime"
    calibration_sequences: Annotated[int, Field(ge=1)] = 128
    calibration_frames: Annotated[int, Field(ge=1)] = 60
    minimum_agreement: Annotated[float, Field(ge=-1, le=1)] = 0.5
    minimum_parity: Annotated[float, Field(ge=-1, le=1)] = 0.999
    seed: int = 0

    @property
    def label(self) -> str:
        """``W4A8``: widths of weights and activations."""
        return f"W{self.weight_bits}A{self.activation_bits}"


class ModelSource(_Model):
    """Where a network comes from.

    Attributes:
        path: of the model file.
        factory: ``module:callable`` that makes the network, for files that hold weights only.
        arguments: keyword arguments of the factory.
        adapter: ``opengait`` or ``module:class``; None where the network takes ``[n, s, h, w]`` itself.
        trust_pickle: whether a pickled module may run its code.
        frames: fixed frame count; None lets it be free.
        sha256: of the file, written by the toolkit.
    """

    path: Path
    factory: str | None = None
    arguments: dict[str, Any] = Field(default_factory=dict)
    adapter: str | None = None
    trust_pickle: bool = False
    frames: Annotated[int, Field(ge=1)] | None = None
    sha256: str | None = None


class DataSource(_Model):
    """Where sequences come from; without a root, the built-in synthetic walkers.

    Attributes:
        root: of an OpenGait layout.
        partition: partition json; None looks for ``partition.json`` in the root.
        protocol: of the evaluation.
        metric: distance of embeddings.
    """

    root: Path | None = None
    partition: Path | None = None
    protocol: str = "casia-b"
    metric: Literal["euclidean", "cosine"] = "euclidean"


class Recipe(_Model):
    """Everything needed to repeat a run; ``recipe.yaml``."""

    model: ModelSource
    data: DataSource = DataSource()
    quantization: QuantConfig = QuantConfig()


Parsed = TypeVar("Parsed", bound=BaseModel)


def parse(model: type[Parsed], values: Any, where: str) -> Parsed:
    """Validate values as a configuration.

    Args:
        model: which one.
        values: a mapping.
        where: named in errors.

    Raises:
        ConfigError: names the field, what is wrong with it, and what was given.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"])
        given = "" if first["type"] in ("extra_forbidden", "missing") else f", not {first['input']!r}"
        raise ConfigError(f"{where}: {field}: {first['msg']}{given}") from None


def read_recipe(path: Path) -> dict[str, Any]:
    """Read a recipe file as a mapping; `parse` validates it after options have been merged in.

    Raises:
        ConfigError: no such file, or not a YAML mapping.
    """
    try:
        values = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: the recipe cannot be read ({error.strerror or error})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: a recipe is a mapping with the keys model, data and quantization")
    return values


def recipe_yaml(recipe: Recipe) -> str:
    """The recipe as YAML text."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False)
