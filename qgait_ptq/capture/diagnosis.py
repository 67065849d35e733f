"""Explanation of a failed capture for the author of the network: line, cause and remedies."""

from __future__ import annotations

from qgait_ptq.errors import first_line
from qgait_ptq.graph.code_places import find_place

# Words of the exporter's message → cause, and the best remedy.
CONSTRUCTS = (
    (
        ("data-dependent", "data dependent"),
        "the line makes a decision, a size or a number from the values of a tensor (if, int(…), .item())",
        "compute with tensors instead, such as torch.where",
    ),
    (
        (".numpy()", "tolist", "can't convert cuda tensor"),
        "the line converts tensors to numpy or plain numbers",
        "compute with torch operators instead",
    ),
    (
        ("cuda",),
        "the line moves tensors to a GPU",
        "create tensors on the device of the input (x.new_zeros, device=x.device)",
    ),
    (
        ("Constraints violated", "specialized", "L['args']"),
        "the line fixes the batch size or the frame count",
        "use sizes without int(…), and no loops over frames",
    ),
)


# The same for errors of the network's own forward.
FORWARD_CAUSES = (
    (
        ("nvidia", "cuda", "cudnn"),
        "its code assumes a GPU: create tensors on the device of the input (x.new_zeros, device=x.device)",
    ),
    (
        ("is not installed", "no module named"),
        "install the missing package",
    ),
    (
        ("has no attribute", "missing 1 required", "missing 2 required", "positional argument", "nonetype"),
        "its code expects another input, or attributes that are set elsewhere, such as labels or a "
        "configuration; bring it to one input in an adapter (--adapter module:class wraps the network)",
    ),
    (
        ("size", "shape", "dimension", "channels", "kernel", "expected", "index", "view", "stack", "cat"),
        "check the shape of a frame and the order of axes; an adapter (--adapter module:class) brings the "
        "input to what the network expects. Where it takes one frame count only, name that with --frames",
    ),
)
OTHER_CAUSE = "run the network on such an input in Python, and mend that line first"


def explain_forward_failure(error: BaseException, what: str, remedy: str | None = None) -> str:
    """Return where and why a network's own forward failed, and what helps.

    Args:
        error: raised by the network.
        what: says what was tried, for the first words.
        remedy: what helps; None determines it from the text of the error.
    """
    text = str(error).lower()
    remedy = remedy or next(
        (remedy for marks, remedy in FORWARD_CAUSES if any(mark in text for mark in marks)), OTHER_CAUSE
    )
    place = find_place(error)
    where = f"\n  at {place.file}:{place.line}\n    {place.code}\n  " if place else "; "
    return f"{what} ({type(error).__name__}: {first_line(error)}){where}{remedy}"


def explain_failure(error: BaseException, doing: str) -> str:
    """Explain what stopped the capture, in a few lines.

    Args:
        error: error from torch.export.
        doing: first words of the explanation.
    """
    text = f"{type(error).__name__}: {error}"
    construct, remedy = next(
        ((what, remedy) for marks, what, remedy in CONSTRUCTS if any(mark in text for mark in marks)),
        (f"{type(error).__name__}: {first_line(error)}", "use operators that torch.export supports"),
    )
    place = find_place(error)
    where = f" at {place.file}:{place.line}\n    {place.code}\n  " if place else ": "
    remedies = (
        f"{remedy}; or override that code in an adapter (--adapter module:class wraps the network); or "
        "quantize the backbone alone and keep the rest in float (--capture-submodule NAME); or, for a fixed "
        "frame count, pass --frames"
    )
    return f"{doing}{where}{construct}\n  remedies: {remedies}"
