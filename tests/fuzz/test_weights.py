"""Mutated files of weights are loaded or end in a `ModelError`; none runs code."""

import io
import zipfile
from argparse import Namespace
from collections import defaultdict, deque
from pathlib import PurePosixPath

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from qgait_ptq.capture.loading import load_model
from qgait_ptq.errors import ModelError
from qgait_ptq.gait.zoo import NETWORKS
from tests.fuzz.mutate import CANARY, run_fuzz

FEW, MANY = 200, 10_000


class Bomb:
    def __reduce__(self):
        return (open, (CANARY, "w"))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2, 3)
        self.register_buffer("count", torch.tensor(3))
        self.narrow = nn.Parameter(torch.ones(2, dtype=torch.float16), requires_grad=False)


def weights():
    torch.manual_seed(0)
    return Small().state_dict()


def saved(content, **options):
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def contents():
    """A state_dict, checkpoints with other objects and averages, wrapped weights, and what runs code."""
    given = weights()
    shared = {**given, "conv.bias": given["conv.weight"].flatten()[:2], "narrow": given["narrow"].expand(2)}
    return [
        given,
        shared,
        {"model": given, "epoch": 3, "optimizer": {"lr": 0.1}},
        {"state_dict": {f"module.{name}": value for name, value in given.items()}},
        {
            "epoch": np.float64(3),
            "args": Namespace(out=PurePosixPath("a"), groups=defaultdict(list, a=[1]), history=deque([1])),
            "net": {f"module.{name}": value for name, value in given.items()},
            "ema": {"shadow": given, "list": list(given.values())},
        },
        {**given, "bomb": Bomb()},
    ]


def storages():
    """Bytes of each storage of the plain weights, in the order of their keys."""
    with zipfile.ZipFile(io.BytesIO(saved(weights()))) as archive:
        return [member.file_size for member in archive.infolist() if "/data/" in member.filename]


SIZES = storages()


def load(path):
    return load_model(path, Small, {}, NETWORKS)


def pickles():
    """The pickle inside of each archive."""
    found = []
    for content in contents():
        with zipfile.ZipFile(io.BytesIO(saved(content))) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            found.append(archive.read(name))
    return found


def repack(content):
    """An archive, as torch writes one, around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
        for number, size in enumerate(SIZES):
            archive.writestr(f"archive/data/{number}", bytes(size))
    return file.getvalue()


KINDS = {
    "archive": ("pt", [saved(content) for content in contents()], None),
    "legacy": ("pt", [saved(c, _use_new_zipfile_serialization=False) for c in contents()], None),
    "pickle in an archive": ("pt", pickles(), repack),
    "safetensors": ("safetensors", [safetensors.torch.save(weights())], None),
}


def fuzz(name, tries, seed):
    kind, seeds, repair = KINDS[name]
    done = run_fuzz(kind, seeds, load, tries, seed, repair)
    assert done.refused
    return done


@pytest.mark.parametrize("name", KINDS)
def test_mutated_weights_are_loaded_or_refused(name):
    done = fuzz(name, FEW, seed=0)
    assert done.read or name == "pickle in an archive"  # of which hardly any survives a change


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_mutated_weights_are_loaded_or_refused(name):
    fuzz(name, MANY, seed=1)


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_very_long_name_is_refused_at_once(end, tmp_path):
    """torch takes time with the square of its length to describe the error."""
    path = tmp_path / "weights.pt"
    path.write_bytes(b"\x80\x02ccollections\n" + b"e" * 60_000 + end)
    with pytest.raises(ModelError, match="a class name of 60,"):
        load(path)
