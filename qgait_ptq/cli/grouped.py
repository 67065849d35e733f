"""Options in groups with a heading, with their defaults, and with former names that still work."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import click


class GroupedOption(click.Option):
    """An option of a group.

    Attributes:
        group: heading in the help.
        former: names that still work and are not shown.
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
            names: as of `click.Option`.
            group: heading in the help.
            former: names that still work and are not shown.
            default_text: shown as the default; options of a recipe have none of their own.
            settings: as of `click.Option`.
        """
        super().__init__([*names, *former], **settings)
        self.group, self.former, self.default_text = group, tuple(former), default_text

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        """Names without the former ones, and help with the default."""
        shown = copy.copy(self)
        shown.opts = [name for name in self.opts if name not in self.former]
        record = click.Option.get_help_record(shown, ctx)
        if record is None or self.default_text is None:
            return record
        return record[0], f"{record[1]}  [default: {self.default_text}]"


class GroupedCommand(click.Command):
    """A command whose help lists options under their headings, in the order in which groups appear."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write one section for each group; options without one come last."""
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
    """Decorate a command with an option that is a number from 1.

    Args:
        name: with its dashes.
        help_text: description.
        group: heading in the help.
        default: shown; None has none, or the one of ``default_text``.
        settings: as of `GroupedOption`.
    """
    given = {"type": click.IntRange(min=1), "metavar": "NUMBER", **settings}
    if default is not None:
        given |= {"default": default, "show_default": True}
    return option(name, group=group, help=help_text, **given)
