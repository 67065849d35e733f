"""Names from files in tables, notes, stages and the log: shown, never interpreted."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress as RichProgress
from rich.table import Table

from qgait_ptq.evaluation.benchmark import FileBenchmark, Timing
from qgait_ptq.reference.additions import AdditionProof
from qgait_ptq.reference.pair_sums import PairBound, PairSums
from qgait_ptq.reference.proof import ExactnessProof
from qgait_ptq.report.comparing import Row
from qgait_ptq.report.logging import LoggedProgress
from qgait_ptq.report.plain import add_row, cell, plain, print_table, title_text, write_line
from qgait_ptq.report.runtime_tables import (
    bench_table,
    comparison_of_results,
    pair_table,
    verification_table,
)
from qgait_ptq.report.terminal import (
    SpeedColumn,
    TerminalProgress,
    accuracy_table,
    comparison_table,
    evaluation_table,
    layer_table,
    sensitivity_table,
    stage_lines,
)
from qgait_ptq.system.progress import Silent
from qgait_ptq.verification.file_bytes import TensorCheck, Verification

# Closing tags that nothing opened end the program where they are taken for markup.
HOSTILE = "[/x][red]b\x1b]0;t\x07\x9b2J\u202e\n:smile:\udcff"
SHOWN = r"[/x][red]b\x1b]0;t\x07\x9b2J\u202e\n:smile:\udcff"
RANKS = {HOSTILE: 90.0, "mean": 90.0}
ACCURACY = {"rank1": RANKS, "rank5": RANKS, "rank10": RANKS, "mAP": 80.0, "mINP": 70.0}
REPORT = {
    "accuracy": dict.fromkeys(("float", "quantized", "onnx"), ACCURACY),
    "size_bytes": {"float": 4, "onnx": 1},
    "config": {"weight_bits": 4, "activation_bits": 8},
}
LAYER = {
    "name": HOSTILE,
    "operator": HOSTILE,
    "output_shape": [1, 2],
    "parameters": 3,
    "macs": 4,
    "weight_bits": 4,
    "activation_bits": None,
    "integer": True,
}
COMPARED = {"name": HOSTILE, "sqnr_db": 1.0, "cosine": 1.0, "distance_error": 1.0, "simulation_sqnr_db": None}
TIMING = Timing((1, 1, 1), (1, 1, 1), (1, 1, 1), 0)
TABLES = {
    "accuracy": lambda: accuracy_table(REPORT),
    "evaluation": lambda: evaluation_table(ACCURACY, HOSTILE),
    "layers": lambda: layer_table([LAYER], HOSTILE),
    "layer errors": lambda: comparison_table([COMPARED], HOSTILE),
    "sensitivity": lambda: sensitivity_table(
        [{"layers": [HOSTILE], "kind": "weights", "bits": 4, "distance_error": 1.0}]
    ),
    "pairs": lambda: pair_table(
        ExactnessProof(
            PairSums((PairBound(HOSTILE, "Conv", 1, 255),), (HOSTILE,)), (AdditionProof(HOSTILE, 4, 1),)
        )
    ),
    "verification": lambda: verification_table(
        Verification((TensorCheck("t", HOSTILE, HOSTILE, 1, 0, 0),), ())
    ),
    "bench": lambda: bench_table([FileBenchmark(Path(HOSTILE), TIMING, None, None, 1.0, 1.0)], HOSTILE),
    "comparison": lambda: comparison_of_results(
        [Row(HOSTILE, "W4A8", HOSTILE, 1.0, None, None, None, None, 1.0, 30.0, None, None, None, None)]
    ),
}


def terminal(width=300):
    return Console(file=io.StringIO(), width=width, force_terminal=True, color_system="truecolor")


def render(*parts):
    console = terminal()
    for part in parts:
        console.print(part)
    return console.file.getvalue()


@pytest.mark.parametrize("name", TABLES)
def test_tables_show_names_and_do_not_interpret_them(name):
    text = render(TABLES[name]())
    assert SHOWN in text
    without_styles = re.sub(r"\x1b\[[\d;]*m", "", text)
    assert all(line.isprintable() for line in without_styles.splitlines())


def test_the_table_has_no_column_for_a_network_without_figures():
    measured = {**REPORT, "accuracy": dict.fromkeys(("float", "onnx"), ACCURACY)}
    assert "simulation" in render(accuracy_table(REPORT))
    assert "simulation" not in render(accuracy_table(measured))


def test_a_bar_shows_the_steps_a_second():
    progress = RichProgress(SpeedColumn(), console=terminal())
    task = progress.add_task("evaluation", total=10)
    column = SpeedColumn()
    assert column.render(progress.tasks[task]).plain == ""
    for _ in range(3):
        progress.advance(task)
    assert column.render(progress.tasks[task]).plain.endswith("/s")


def test_plain_text_has_one_line_and_no_control_characters():
    assert plain(HOSTILE) == SHOWN
    assert plain("a × b, 50 %\u00a0[ok]") == r"a × b, 50 %\xa0[ok]"
    everything = "".join(map(chr, range(0x11000)))
    assert plain(everything).isprintable()
    plain(everything).encode()


def test_the_look_of_tables_is_unchanged():
    """The same table from text, as rich reads it where nothing is markup."""
    before, after = Table(title="title"), Table(title=title_text("title"))
    before.add_column("layer")
    after.add_column(cell("layer"))
    before.add_row("conv 1.5")
    add_row(after, "conv 1.5")
    assert render(before) == render(after)


def test_lines_and_notes_are_plain():
    console = terminal()
    write_line(console, HOSTILE)
    TerminalProgress(console).note(HOSTILE)
    assert console.file.getvalue() == f"{SHOWN}\n" * 2
    console = terminal()
    console.print("a 5 of [10]", highlight=False, markup=False)
    write_line(console, "a 5 of [10]")
    first, second = console.file.getvalue().splitlines()
    assert first == second


def test_stages_show_their_name():
    console = terminal()
    for steps in (None, 3):
        with TerminalProgress(console).stage(HOSTILE, steps) as advance:
            advance()
    assert SHOWN in console.file.getvalue()
    assert "\x1b]" not in console.file.getvalue()


def test_the_log_has_one_line_for_each_event(tmp_path):
    log = LoggedProgress(Silent(), tmp_path / "log")
    log.note(HOSTILE)
    with pytest.raises(ValueError, match="red"), log.stage(HOSTILE):
        raise ValueError(HOSTILE)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [line[21:] for line in lines] == [
        "log begins",
        SHOWN,
        f"{SHOWN}: begins",
        f"{SHOWN}: stopped by ValueError: {SHOWN}",
    ]


REFIT = {
    "held_out_loss": {"start": 0.2, "refit": 0.1},
    "kept": "refit",
    "judged_by": "held-out identities",
    "sequences": 1762,
    "ranks": {
        "held_out_loss": {"start": 0.5, "end": 0.25},
        "kept": "end",
        "judged_by": "238 sequences of other people",
    },
}


def test_each_part_of_the_refit_that_is_kept_has_a_line():
    first = "refit with 1762 sequences: loss 0.2000 → 0.1000 (last layers) on held-out identities"
    second = "keeping ranks: loss 0.5000 → 0.2500 (last step) on 238 sequences of other people"
    assert list(stage_lines({"refit": REFIT})) == [first, second]
    undone = {**REFIT, "kept": "start", "ranks": {**REFIT["ranks"], "kept": "start"}}
    assert list(stage_lines({"refit": undone})) == []
    assert list(stage_lines({"refit": {**REFIT, "ranks": None}})) == [first]


@pytest.mark.parametrize("name", TABLES)
def test_nothing_of_a_table_is_cut_in_a_narrow_terminal(name):
    table, console = TABLES[name](), Console(file=io.StringIO(), width=40)
    print_table(console, table)
    shown = re.sub(r"\s", "", console.file.getvalue())
    assert all(re.sub(r"\s", "", str(cell)) in shown for column in table.columns for cell in column.cells)
    assert "…" not in shown
    assert all(len(line) <= 40 for line in console.file.getvalue().splitlines())


def test_a_table_is_a_table_in_a_terminal_of_usual_width():
    console = Console(file=io.StringIO(), width=80)
    print_table(console, TABLES["layers"]())
    assert "┏" in console.file.getvalue()
