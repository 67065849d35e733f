"""Operators in float whose weights are integers, on the command line."""

from __future__ import annotations

import pytest
import torch
from click.testing import CliRunner

from qgait_ptq.cli.main import cli
from tests.weight_only_networks import SIZE, make_lstm


@pytest.fixture
def checkpoint(tmp_path):
    torch.save(make_lstm().state_dict(), tmp_path / "lstm.pt")
    return tmp_path / "lstm.pt"


def inspect(checkpoint, *options):
    size = ["--height", str(SIZE[0]), "--width", str(SIZE[1])]
    network = ["inspect", str(checkpoint), "--factory", "tests.weight_only_networks:make_lstm"]
    done = CliRunner().invoke(cli, [*network, *size, *options], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


def test_inspect_lists_width_reason_and_share(checkpoint):
    text = inspect(checkpoint, "--bits", "4")
    (row,) = [line.split("│")[1:-1] for line in text.splitlines() if "│ lstm " in line]
    name, operator, output, weights, macs, bits, inputs, kernel = map(str.strip, row)
    assert (name, operator, output, weights) == ("inner.rnn", "lstm", "1×30×48", "15,744")
    assert (macs, bits, inputs, kernel) == ("0.5", "4", "float", "float")
    text = " ".join(text.split())
    assert "inner.rnn: weight-only: 15,360 weights are stored as integers of 4 bits" in text
    assert "0.02 M of them stored as integers" in text
    assert "% weight-only" in text


def test_an_excluded_lstm_stays_in_float(checkpoint):
    text = " ".join(inspect(checkpoint, "--exclude", "inner").split())
    assert "inner.rnn: left in float by include or exclude" in text
    assert "weight-only" not in text
