"""Options in groups with a heading. They show their defaults, and their former names still work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click
from click.core import ParameterSource


class GroupedOption(click.Option):
    """An option of a group.

    Attributes:
        group: heading in the help.
        former: earlier names of the option; they still work but are not shown.
    """

    def __init__(
        self,
        names: Sequence[str],
        *,
        group: str = "Options",
        former: Sequence[str] = (),
        default_text: str | None = None,
        **settings: Any,
    ) -> None:
        """Make an option.

        Args:
            names: names of the option, as for `click.Option`.
            group: heading in the help.
            former: earlier names of the option; they still work but are not shown.
            default_text: default to show, for options whose default click does not know (those of a recipe).
            settings: other arguments of `click.Option`.
        """
        super().__init__([*names, *former], **settings)
        self.group, self.former, self.default_text = group, tuple(former), default_text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Return the current names, and the help text with the default."""
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name not in self.former]
        record = click.Option.get_help_record(shown, ctx)
        if record is None or self.default_text is None:
            return record
        return record[0], f"{record[1]}  [default: {self.default_text}]"


class GroupedCommand(click.Command):
    """A command whose help lists options under their headings, in order of first appearance."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group. Options without a group come last."""
        sections: dict[str, list[tuple[str, str]]] = {}
        options = [parameter for parameter in self.get_params(ctx) if isinstance(parameter, click.Option)]
        for parameter in sorted(options, key=lambda one: not isinstance(one, GroupedOption)):
            record = parameter.get_help_record(ctx)
            if record is not None:
                heading = parameter.group if isinstance(parameter, GroupedOption) else "Other options"
                sections.setdefault(heading, []).append(record)
        for heading, records in sections.items():
            with formatter.section(heading):
                formatter.write_dl(records)


def option(*names: str, **settings: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with a `GroupedOption`."""
    return click.option(*names, cls=GroupedOption, **settings)


def count(
    name: str, help_text: str, group: str, default: int | None = None, **settings: Any
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Decorate a command with an option that is an integer of at least 1.

    Args:
        name: name of the option, with its dashes.
        help_text: description.
        group: heading in the help.
        default: default, which the help shows. None: no default.
        settings: other arguments of `GroupedOption`.
    """
    arguments = {"type": click.IntRange(min=1), "metavar": "NUMBER", **settings}
    if default is not None:
        arguments |= {"default": default, "show_default": True}
    return option(name, group=group, help=help_text, **arguments)


def refuse_options(names: Iterable[str], reason: str) -> None:
    """Refuse options of the current command that it would ignore.

    Args:
        names: names of the parameters.
        reason: cause, before a colon and the options.

    Raises:
        click.UsageError: one of them was given on the command line; the text names all that were.
    """
    context = click.get_current_context()
    asked = {name for name in names if context.get_parameter_source(name) is ParameterSource.COMMANDLINE}
    given = [parameter.opts[0] for parameter in context.command.params if parameter.name in asked]
    if given:
        raise click.UsageError(f"{reason}: {', '.join(given)}", context)
