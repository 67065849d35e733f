"""Configurations of OpenGait: YAML files of one network with its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qgait_ptq.config.recipes import read_yaml
from qgait_ptq.errors import ConfigError

PROTOCOLS_BY_DATA = {
    "casia-b": "casia-b",
    "casia-b*": "casia-b",
    "oumvlp": "oumvlp",
    "gait3d": "gait3d",
    "grew": "grew",
}
METRICS = {"euc": "euclidean", "cos": "cosine"}
# They divide values by 255, which the toolkit always does. The second also cuts columns.
APPLIED_TRANSFORMS = ("BaseSilTransform", "BaseSilCuttingTransform")
NO_TRANSFORM = "NoOperation"  # for data other than silhouettes, such as a body model
FIXED_FRAMES = "fixed"  # prefix of the samplers that give each sequence the same length
SELECTED_FRAMES = "sequence_length"  # setting of transforms that select a part of each sequence
COMPOSED = "Compose"  # a transform that applies others


@dataclass(frozen=True)
class OpenGaitConfig:
    """Settings from a YAML file of OpenGait.

    Attributes:
        path: path of the file.
        network: class name of the network.
        model_cfg: argument of the network's ``build_network``.
        data: settings of the evaluation by their names in recipes: ``metric``, ``protocol`` (if the toolkit
            has one for the data set), ``cut_columns``, ``longest``, ``modality``, ``raw``.
        frames: frame count that a transform or the sampler gives for each sequence; None for all frames.
        not_applied: transforms of the evaluation that the toolkit does not support.
        sections: all sections of the file, which the code of a network may read.
    """

    path: Path
    network: str
    model_cfg: Mapping[str, Any]
    data: Mapping[str, Any]
    frames: int | None
    not_applied: tuple[str, ...]
    sections: Mapping[str, Any]


def read_opengait_config(path: Path) -> OpenGaitConfig:
    """Read a YAML file of OpenGait.

    Raises:
        ConfigError: the file cannot be read, a section has the wrong type, the metric is unknown, or the
            model or the modality is missing.
    """
    values = read_yaml(path, "the OpenGait configuration", as_opengait=True)
    model_cfg = values.get("model_cfg") if isinstance(values, dict) else None
    if not isinstance(model_cfg, dict) or not isinstance(model_cfg.get("model"), str):
        raise ConfigError(f"{path}: not an OpenGait configuration: model_cfg.model is missing")
    evaluator, data = (_mapping(path, values, section) for section in ("evaluator_cfg", "data_cfg"))
    if evaluator.get("cross_view_gallery"):
        raise ConfigError(
            f"{path}: evaluator_cfg.cross_view_gallery is set, but its gallery and probes are not supported; "
            "remove it for those of --protocol"
        )
    sampler = _mapping(path, evaluator, "sampler")
    transforms = _transforms(path, evaluator.get("transform"))
    settings: dict[str, Any] = {"metric": _metric(path, evaluator), **_cut(transforms)}
    name = str(data.get("test_dataset_name") or data.get("dataset_name") or "").lower()
    if name in PROTOCOLS_BY_DATA:
        settings["protocol"] = PROTOCOLS_BY_DATA[name]
    if sampler.get("frames_all_limit"):
        settings["longest"] = sampler["frames_all_limit"]
    used = _modalities(path, data.get("data_in_use") or [True])
    settings["modality"] = used[0] if len(used) == 1 else used
    if transforms and all(name == NO_TRANSFORM for name, _ in transforms):
        settings["raw"] = True
    fixed = str(sampler.get("sample_type", "")).startswith(FIXED_FRAMES)
    return OpenGaitConfig(
        path,
        model_cfg["model"],
        model_cfg,
        settings,
        _selected(transforms) or (sampler.get("frames_num_fixed") if fixed else None),
        tuple(name for name, _ in transforms if name not in (*APPLIED_TRANSFORMS, NO_TRANSFORM)),
        values,
    )


def _modalities(path: Path, in_use: object) -> list[int]:
    """Return the indices of the files that a network reads: those marked true, or listed by number."""
    entries = in_use if isinstance(in_use, list) else [None]
    if all(isinstance(entry, bool) for entry in entries):
        used = [index for index, is_used in enumerate(entries) if is_used]
        if not used:
            raise ConfigError(f"{path}: data_cfg.data_in_use selects no modality; set at least one to true")
        return used
    if all(type(entry) is int and entry >= 0 for entry in entries):
        return list(entries)
    raise ConfigError(
        f"{path}: data_cfg.data_in_use is {in_use!r}, neither a list of true and false nor one of numbers"
    )


def _mapping(path: Path, values: Mapping[str, Any], section: str) -> Mapping[str, Any]:
    """Return a section, or an empty mapping if it is missing."""
    content = values.get(section) or {}
    if isinstance(content, list) and section == "data_cfg":
        raise ConfigError(
            f"{path}: data_cfg lists {len(content)} data sets; keep the one that is evaluated, as a mapping"
        )
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: {section} is {content!r}, not a mapping")
    return content


def _metric(path: Path, evaluator: Mapping[str, Any]) -> str:
    metric = str(evaluator.get("metric", "euc"))
    if metric not in METRICS:
        raise ConfigError(
            f"{path}: evaluator_cfg.metric is {metric!r}; supported values are {', '.join(METRICS)}"
        )
    return METRICS[metric]


def _transforms(path: Path, configured: Any) -> list[tuple[str, Mapping[str, Any]]]:
    """Return names and settings of transforms, which are one mapping or a list."""
    listed = configured if isinstance(configured, list) else [configured] if configured else []
    if not all(isinstance(transform, dict) for transform in listed):
        raise ConfigError(f"{path}: evaluator_cfg.transform is {configured!r}, not a list of mappings")
    return [item for transform in listed for item in _single(path, transform)]


def _single(path: Path, transform: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the name and the settings of a transform, or those of the transforms that it is composed of."""
    if transform.get("type") == COMPOSED and transform.get("trf_cfg"):
        yield from _transforms(path, transform["trf_cfg"])
    else:
        yield str(transform.get("type")), transform


def _selected(transforms: list[tuple[str, Mapping[str, Any]]]) -> int | None:
    """Return the frame count that the last transform of this kind selects; None if there is none."""
    lengths = [settings[SELECTED_FRAMES] for _, settings in transforms if settings.get(SELECTED_FRAMES)]
    return lengths[-1] if lengths else None


def _cut(transforms: list[tuple[str, Mapping[str, Any]]]) -> dict[str, int]:
    """Return the columns that the first transform of silhouettes cuts; empty for the toolkit's default."""
    of_silhouettes = [transform for transform in transforms if transform[0] in APPLIED_TRANSFORMS]
    name, settings = of_silhouettes[0] if of_silhouettes else ("", {})
    if name == "BaseSilTransform":
        return {"cut_columns": 0}
    return {"cut_columns": settings["cutting"]} if settings.get("cutting") is not None else {}
