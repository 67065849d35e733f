"""Tables about exported files: targets, proof, bytes that differ, speed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table

from qgait_ptq.quantizer.pair_order import INT16_MAX
from qgait_ptq.report.plain import add_row, title_text

if TYPE_CHECKING:
    from pathlib import Path

    from qgait_ptq.evaluation.benchmark import FileBenchmark
    from qgait_ptq.reference.proof import ExactnessProof
    from qgait_ptq.report.comparing import Row
    from qgait_ptq.targets.target import Target
    from qgait_ptq.verification.file_bytes import Verification


def target_table(targets: Sequence[Target]) -> Table:
    """Return a table of the targets, one in each row."""
    table = Table()
    table.add_column("target", no_wrap=True)
    table.add_column("activations", overflow="fold")
    table.add_column("4-bit weights", overflow="fold")
    table.add_column("opset", justify="right")
    table.add_column("tested in", overflow="fold")
    for target in targets:
        add_row(
            table,
            target.name,
            _activations(target),
            "two in a byte" if target.storage.int4_weights else "as int8",
            str(target.opset),
            ", ".join(target.runtimes) or "no runtime here",
        )
    return table


def _activations(target: Target) -> str:
    kind = "int8" if target.rules.activation_signed else "uint8"
    narrowest = target.storage.narrowest_activations
    bits = "8 bits" if narrowest == 8 else f"{narrowest} to 8 bits"
    return f"{kind}, {bits}" + (", zero-points zero" if target.rules.activation_symmetric else "")


def pair_table(proof: ExactnessProof) -> Table:
    """Return a table of the largest pair sum of each layer, compared with the largest 16-bit integer."""
    table, sums = Table(), proof.pair_sums
    table.add_column("layer", overflow="fold")
    for heading in ("two weights", "code", "16-bit sum"):
        table.add_column(heading, justify="right")
    table.add_column("", no_wrap=True)
    for layer in sums.layers:
        numbers = (str(layer.worst_pair), str(layer.largest_code), f"{layer.bound:,}")
        verdict = "depthwise" if layer.depthwise else "safe" if layer.safe else "UNSAFE"
        add_row(table, layer.layer, *numbers, verdict)
    for name in sums.unknown:
        add_row(table, name, "", "", "", "unknown")
    for addition in proof.additions:
        verdict = (
            f"{addition.differing:,} of {addition.pairs:,} sums DIFFER" if addition.differing else "safe"
        )
        add_row(table, f"{addition.node}, an addition", "", "", "", verdict)
    table.caption = (
        f"16-bit sum: largest sum of two neighbouring products; 16 bits hold {INT16_MAX:,}.\n"
        "Depthwise layers add in 32 bits. Unknown: the weight is not stored in the file.\n"
        "Additions: all pairs of codes are compared in the rounding of x86 and of ARM64 kernels.\n"
        "Values computed in float between quantizers, such as means, are not part of the proof."
    )
    return table


def verification_table(verification: Verification) -> Table:
    """Return a table of the tensors of the runtime's graph, with the number of bytes that differ."""
    table = Table()
    table.add_column("node", overflow="fold")
    table.add_column("operator", overflow="fold")
    for heading in ("bytes", "differ", "by at most"):
        table.add_column(heading, justify="right")
    for tensor in verification.tensors:
        add_row(
            table,
            tensor.node,
            tensor.operator,
            f"{tensor.values:,}",
            str(tensor.differing),
            str(tensor.largest),
        )
    return table


def bench_table(measured: Sequence[FileBenchmark], title: str) -> Table:
    """Return a table of files in the given order. Speed is relative to the first file."""
    table = Table(title=title_text(title), box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("file", overflow="fold", min_width=14)
    for heading in ("CPU ms", "times faster", "GMAC/s", "peak", "RAM MB", "MB"):
        table.add_column(heading, justify="right", no_wrap=True)
    for one in measured:
        speed, share, timing = one.macs_per_second, one.peak_share, one.timing
        median, low, high = timing.faster
        add_row(
            table,
            _short_name(one.path, [other.path for other in measured]),
            f"{timing.cpu_ms[0]:.1f}",
            f"{median:.2f} ({low:.2f}–{high:.2f})",
            "" if speed is None else f"{speed / 1e9:.0f}",
            "" if share is None else f"{100 * share:.0f} %",
            "" if one.peak_memory_mb is None else f"{one.peak_memory_mb:.0f}",
            f"{one.megabytes:.2f}",
        )
    is_measured = all(one.peak_memory_mb is not None for one in measured)
    memory = "without the runtime itself" if is_measured else "not measured on this system"
    table.caption = (
        "CPU ms of one call. Times faster than the first file (quartiles).\n"
        f"Peak: share of the GMAC/s of large convolutions. RAM: {memory}.\n"
        "--json also prints wall times."
    )
    return table


def _short_name(path: Path, paths: Sequence[Path]) -> str:
    """Return the name of a file, with its folder if another file has the same name."""
    same = [other for other in paths if other.name == path.name]
    return path.name if len(same) == 1 else f"{path.parent.name}/{path.name}"


def comparison_of_results(rows: Sequence[Row]) -> Table:
    """Return a table of results in the given order."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("result", overflow="fold", min_width=8)
    for heading in ("widths", "MB", "rank-1, %", "from float", "mAP, %", "SQNR, dB", "faster"):
        table.add_column(heading, justify="right")
    for row in rows:
        change = "" if row.change is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*row.change)
        add_row(
            table,
            row.name,
            row.widths,
            f"{row.megabytes:.3f}",
            "" if row.rank1 is None else f"{row.rank1:.2f}",
            change,
            "" if row.mean_average_precision is None else f"{row.mean_average_precision:.2f}",
            f"{row.sqnr_db:.1f}",
            "" if row.faster is None else f"{row.faster:.2f}×",
        )
    table.caption = "From float: change of rank-1 in points, with the paired 95 % interval over identities"
    return table
