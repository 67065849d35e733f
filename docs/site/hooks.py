"""Generate pages from the code: commands from their help, the recipe from its schema, targets, the report.

A page contains a comment such as ``<!-- generated: recipe -->``, which is replaced.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, get_args

import click
import griffe
from pydantic import BaseModel

from qgait_ptq.cli.main import COMMANDS, cli
from qgait_ptq.config import schema as config
from qgait_ptq.report.schema import Report
from qgait_ptq.targets.registry import TARGETS
from qgait_ptq.targets.target import Target

SECTIONS = (
    ("model", config.ModelSource),
    ("data", config.DataSource),
    ("quantization", config.QuantConfig),
    ("quantization.idc", config.IdcConfig),
    ("quantization.finetune", config.FinetuneConfig),
    ("quantization.budget", config.BudgetConfig),
    ("quantization.layers", config.LayerBits),
)


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill a page in before it is rendered."""
    return re.sub(r"<!-- generated: (\w+) -->", lambda match: GENERATORS[match[1]](), markdown)


def describe_recipe() -> str:
    """Every key of a recipe: type, default, meaning."""
    parts = []
    for name, model in SECTIONS:
        parts += [f"## `{name}`", "", _summary(model), "", "| key | type | default | |", "|---|---|---|---|"]
        meanings = _attributes(model)
        for key, field in model.model_fields.items():
            default = "" if field.is_required() else _default(field.get_default(call_default_factory=True))
            kind = _escape(_kind(model, key))
            parts.append(f"| `{key}` | {kind} | {default} | {_escape(meanings[key])} |")
        parts.append("")
    return "\n".join(parts)


def describe_commands() -> str:
    """The help of every command."""
    parts = []
    for name in COMMANDS:
        command = cli.get_command(click.Context(cli), name)
        assert command is not None  # noqa: S101 - one of them
        context = click.Context(
            command, info_name=f"qgait-ptq {name}", max_content_width=100, terminal_width=100
        )
        parts += [f"## {name}", "", "```text", command.get_help(context), "```", ""]
    return "\n".join(parts)


def describe_targets() -> str:
    """Rules and limits of every target."""
    parts = []
    for target in TARGETS.values():
        parts += [f"## `{target.name}`", "", f"{target.description}.", ""]
        parts += [f"- {line}" for line in (*_rules(target), *target.limits)]
        parts.append("")
    return "\n".join(parts)


def describe_report() -> str:
    """List the keys of ``report.json`` and of its sections."""
    parts = ["| key | content |", "|---|---|"]
    sections: dict[str, type[BaseModel]] = {}
    for key, field in Report.model_fields.items():
        section = _section(field.annotation)
        if section is None:
            parts.append(f"| `{key}` | {REPORT_ENTRIES[key]} |")
        else:
            sections[key] = section
            parts.append(f"| `{key}` | {_escape(_code(_summary(section)))} |")
    for key, section in sections.items():
        parts += ["", f"## `{key}`", "", "| key | type |", "|---|---|"]
        for name, field in section.model_fields.items():
            parts.append(f"| `{field.alias or name}` | {_escape(_type_name(field.annotation))} |")
    return "\n".join(parts)


REPORT_ENTRIES = {  # keys of the report that are no sections
    "schema_version": "version of this schema",
    "config": "the settings; see [Recipe](recipe.md)",
    "size_bytes": "size of the `float` and of the quantized `onnx` file",
    "slow_layers": "quantized layers that the runtime does not run on integers",
    "notes": "lines that the run printed: what was left out, pinned or kept in float, and why",
    "calibration": "results of the calibration stages: held-out losses, and which step was kept",
    "allocation": "how widths of layers were chosen; empty if the configuration gives them",
    "seconds": "stage → wall time",
}


def _section(annotation: Any) -> type[BaseModel] | None:
    """The section that a key holds, alone, or in a list or a dictionary."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for inner in get_args(annotation) if (found := _section(inner))), None)


def _type_name(annotation: Any) -> str:
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return re.sub(r"qgait_ptq\.report\.schema\.|typing\.", "", name)


GENERATORS: dict[str, Callable[[], str]] = {
    "recipe": describe_recipe,
    "commands": describe_commands,
    "targets": describe_targets,
    "report": describe_report,
}


def _rules(target: Target) -> list[str]:
    rules, storage = target.rules, target.storage
    kind = "int8" if rules.activation_signed else "uint8"
    zero = "with zero-points zero" if rules.activation_symmetric else "with zero-points"
    return [
        f"activations {kind} {zero}, {storage.narrowest_activations} bits or more",
        "weights int8 per channel; up to 4 bits stored "
        + ("two to a byte" if storage.int4_weights else "as int8 numbers"),
        f"additions quantized on {'one side' if rules.one_sided_additions else 'both sides'}",
        f"ONNX opset {target.opset}; silhouettes as {'uint8 or float32' if target.byte_input else 'float32'}",
        f"tried in {' and '.join(target.runtimes) or 'no runtime: checked against its rules'}",
    ]


def _summary(model: type[BaseModel]) -> str:
    return (model.__doc__ or "").split("\n\n")[0].strip()


def _attributes(model: type) -> dict[str, str]:
    docstring = griffe.Docstring(model.__doc__ or "", parser="google")
    return {
        item.name: " ".join(item.description.split())
        for section in docstring.parse()
        if section.kind is griffe.DocstringSectionKind.attributes
        for item in section.value
    }


def _kind(model: type[BaseModel], key: str) -> str:
    schema = model.model_json_schema()["properties"][key]
    found = []
    for option in schema.get("anyOf", [schema]):
        name = option.get("type", "")
        if "enum" in option:
            name = " or ".join(map(str, option["enum"]))
        elif "$ref" in option:
            name = "section"
        elif name == "null":
            continue
        low = option.get("minimum", option.get("exclusiveMinimum"))
        high = option.get("maximum", option.get("exclusiveMaximum"))
        if low is not None or high is not None:
            name += f", {'' if low is None else f'{low:g}'} … {'' if high is None else f'{high:g}'}"
        found.append(
            {"integer": "whole number", "string": "text", "object": "mapping", "array": "list"}.get(
                name, name
            )
        )
    return " or ".join(found)


def _default(value: object) -> str:
    if isinstance(value, BaseModel):
        return "see below"
    if value is None or value == () or value == {}:
        return "none"
    return f"`{value}`"


def _code(text: str) -> str:
    """Turn the double backticks of docstrings into those of Markdown."""
    return text.replace("``", "`")


def _escape(text: str) -> str:
    return text.replace("|", "\\|")
