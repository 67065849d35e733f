"""Reading of untrusted YAML: plain values only, with limits of size, depth and expansion.

Dates stay text. Tags of Python, dates and binary data are refused. An alias counts as its expansion.
"""

from __future__ import annotations

import reprlib
from typing import Any

import yaml

LARGEST_YAML = 10**6  # bytes of a file
DEEPEST, MOST_NODES = 32, 20_000  # depth and number of values, with aliases expanded
LARGEST_INTEGER = 2**63
PREFIX = "tag:yaml.org,2002:"
PLAIN_TAGS = frozenset(PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
TIMESTAMP = PREFIX + "timestamp"


class RefusedYamlError(yaml.MarkedYAMLError):
    """The YAML is well-formed, but not allowed."""


class _BoundedLoader(yaml.SafeLoader):
    """Builds plain values, and refuses documents that exceed a limit."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0
        self._measures: dict[int, tuple[int, int]] = {}  # id of a finished node → number of nodes, height

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose a node, and count the nodes in it."""
        mark, is_alias = self.peek_event().start_mark, self.check_event(yaml.AliasEvent)
        if self._depth >= DEEPEST:
            raise _refused(f"nested deeper than {DEEPEST} levels", mark)
        before = self._nodes
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if node is None:
            return None
        if not is_alias:
            self._nodes += 1
            self._measures[id(node)] = self._nodes - before, _height(node, self._measures)
        elif id(node) not in self._measures:
            raise _refused("an alias inside the value that it names", mark)
        else:
            nodes, height = self._measures[id(node)]
            self._nodes += nodes
            if self._depth + height > DEEPEST:
                raise _refused(f"nested deeper than {DEEPEST} levels", mark)
        if self._nodes > MOST_NODES:
            raise _refused(f"more than {MOST_NODES} values", mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """Build a value. A value that Python cannot represent raises a YAML error."""
        try:
            value = super().construct_object(node, deep)
            if isinstance(value, str):
                value.encode()  # fails for half of a surrogate pair
        except (ValueError, LookupError, TypeError, AttributeError, OverflowError):
            kind = str(node.tag).removeprefix(PREFIX)
            raise _refused(f"not a valid {kind}: {reprlib.repr(node.value)}", node.start_mark) from None
        if isinstance(value, int) and abs(value) > LARGEST_INTEGER:
            raise _refused("an integer beyond 64 bits", node.start_mark)
        if isinstance(value, str) and "\0" in value:
            raise _refused("a text with a zero byte", node.start_mark)
        return value


# The constructor of None refuses unknown tags.
_BoundedLoader.yaml_constructors = {
    tag: constructor
    for tag, constructor in yaml.SafeLoader.yaml_constructors.items()
    if tag is None or tag in PLAIN_TAGS
}
_BoundedLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def load_yaml(text: str) -> Any:
    """Return the value of a document: mappings, lists, text, numbers, true, false and null.

    Raises:
        yaml.YAMLError: the text is not YAML, or it is a `RefusedYamlError` for YAML that is not allowed.
    """
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def compose_yaml(text: str) -> yaml.Node | None:
    """Return the nodes of a document with their lines. Errors are those of `load_yaml`."""
    loader = _BoundedLoader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _height(node: yaml.Node, measures: dict[int, tuple[int, int]]) -> int:
    """Return the height of a node with its own level. Heights of its children must be known."""
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        children = [child for pair in node.value for child in pair]
    elif isinstance(node, yaml.SequenceNode):
        children = list(node.value)
    return 1 + max((measures[id(child)][1] for child in children), default=0)


def _refused(problem: str, mark: yaml.Mark | None) -> RefusedYamlError:
    return RefusedYamlError(problem=problem, problem_mark=mark)
