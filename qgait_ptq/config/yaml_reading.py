"""Reading of untrusted YAML: plain values only, with limits of size, depth and expansion.

Values are those of YAML 1.2: ``1e-3`` is a number, and ``on``, ``yes`` and ``1:30`` are text. OpenGait reads
its configurations as YAML 1.1, and so do we. Dates stay text. Tags of Python, dates and binary data are
refused, and so are keys that occur twice. An alias counts as its expansion.
"""

from __future__ import annotations

import re
import reprlib
from typing import Any

import yaml

LARGEST_YAML = 10**6  # bytes of a file
DEEPEST, MOST_NODES = 32, 20_000  # depth and number of values, with aliases expanded
LARGEST_INTEGER = 2**63
PREFIX = "tag:yaml.org,2002:"
PLAIN_TAGS = frozenset(PREFIX + kind for kind in ("null", "bool", "int", "float", "str", "seq", "map"))
TIMESTAMP = PREFIX + "timestamp"
MERGE = "<<"
# The core schema of YAML 1.2: tag, pattern, and first characters of a value.
CORE_SCHEMA = (
    ("bool", "true|True|TRUE|false|False|FALSE", "tTfF"),
    ("null", "~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("int", "[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+0123456789.",
    ),
    ("merge", MERGE, MERGE[0]),
)


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


class _CoreLoader(_BoundedLoader):
    """Reads values as YAML 1.2 does, and refuses keys that occur twice."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        """Compose a mapping. A key that occurs twice is refused: the first value would be lost."""
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        keys: set[tuple[str, str]] = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value != MERGE:
                if (key.tag, key.value) in keys:
                    raise _refused(f"the key {key.value!r} occurs twice", key.start_mark)
                keys.add((key.tag, key.value))
        return node


class _CoreDumper(yaml.SafeDumper):
    """Writes text in quotes where YAML 1.1 or 1.2 would read something else."""


def _integer(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = str(loader.construct_scalar(node))
    return int(text, {"0o": 8, "0x": 16}.get(text[:2], 10))


_CoreLoader.yaml_implicit_resolvers = {}
for _class in (_CoreLoader, _CoreDumper):
    for _kind, _pattern, _first in CORE_SCHEMA:
        _class.add_implicit_resolver(PREFIX + _kind, re.compile(f"(?:{_pattern})$"), list(_first))
_CoreLoader.add_constructor(PREFIX + "int", _integer)


def load_yaml(text: str, *, as_opengait: bool = False) -> Any:
    """Return the value of a document: mappings, lists, text, numbers, true, false and null.

    Args:
        text: the document.
        as_opengait: whether values are those of YAML 1.1.

    Raises:
        yaml.YAMLError: the text is not YAML, or it is a `RefusedYamlError` for YAML that is not allowed.
    """
    loader = (_BoundedLoader if as_opengait else _CoreLoader)(text)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def dump_yaml(value: Any) -> str:
    """Return a value as text that `load_yaml` reads, with keys in their order."""
    return str(yaml.dump(value, Dumper=_CoreDumper, sort_keys=False))


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
