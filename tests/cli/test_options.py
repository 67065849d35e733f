"""Options: their groups, their choices, and names of before that still work."""

import click
import pytest
from click.testing import CliRunner

from qgait_ptq.cli import quantize
from qgait_ptq.cli.main import COMMANDS, cli
from qgait_ptq.config.schema import PROTOCOL_NAMES
from qgait_ptq.gait.protocols import PROTOCOLS
from qgait_ptq.targets.profiles import target_names
from qgait_ptq.targets.registry import TARGETS


def help_of(name):
    done = CliRunner().invoke(cli, [name, "--help"], terminal_width=100)
    assert done.exit_code == 0, done.output
    return done.output


def test_the_choices_are_those_of_the_tables():
    assert target_names() == list(TARGETS)
    assert set(PROTOCOL_NAMES) == set(PROTOCOLS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text_that_begins_with_a_word_of_its_own(name):
    command = cli.get_command(click.Context(cli), name)
    assert command is not None
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, parameter.name
            assert not parameter.help.startswith(("Of ", "What ", "How ", "As ", "So ")), parameter.help


def test_quantize_lists_its_options_in_groups():
    text = help_of("quantize")
    headings = [
        "Widths and target",
        "Choosing widths for each layer",
        "Calibration",
        "Data",
        "Network",
        "Run",
    ]
    places = [text.index(f"\n{heading}:\n") for heading in [*headings, "Output"]]
    assert places == sorted(places)
    assert "[default: onnxruntime]" in text


@pytest.mark.parametrize(
    ("former", "present"), [("--model", "--factory"), ("--trust-pickle", "--trust-code")]
)
def test_a_former_name_works_and_is_not_shown(former, present):
    text = help_of("quantize")
    assert present in text
    assert f"{former} " not in text
    assert f"{former}," not in text
    arguments = {"--model": ["m:f"], "--trust-pickle": []}[former]
    context = quantize.command.make_context("quantize", ["model.pt", former, *arguments])
    assert context.params["factory" if arguments else "trust_code"] in ("m:f", True)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--weight-range", "wide"),
        ("--target", "abacus"),
        ("--protocol", "mine"),
        ("--metric", "taxi"),
        ("--device", "abacus"),
        ("--observer", "me"),
        ("--input-type", "int4"),
        ("--bits", "9"),
        ("--bits", "1"),
        ("--input-bits", "0"),
        ("--frames", "0"),
    ],
)
def test_a_wrong_value_is_refused_with_those_that_are_right(option, value):
    done = CliRunner().invoke(cli, ["quantize", "model.pt", option, value])
    assert done.exit_code == 2
    assert option in done.output
    assert "is not one of" in done.output or "is not in the range" in done.output
