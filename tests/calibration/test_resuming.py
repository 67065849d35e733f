"""States of a long stage where they cannot be written or read."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qgait_ptq.calibration.resuming import SavedStates
from qgait_ptq.errors import ConfigError

STATE = {"weights": torch.arange(30_000.0)}


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("before", [True, False])
def test_a_full_disk_is_one_error_and_the_state_before_it_stays(tmp_path, before):
    """A limit on file sizes fails a write in the middle, as a full disk does."""
    if before:
        SavedStates(tmp_path / "states", "mine", resume=False).save("blocks", {"done": 1})
    code = (
        "import torch\n"
        "from pathlib import Path\n"
        "from qgait_ptq.errors import ConfigError\n"
        "from qgait_ptq.calibration.resuming import SavedStates\n"
        f"saved = SavedStates(Path({str(tmp_path / 'states')!r}), 'mine', resume=True)\n"
        "try:\n"
        "    saved.save('blocks', {'weights': torch.arange(30_000.0)})\n"
        "except ConfigError as error:\n"
        "    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[2],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)),
    )
    assert "blocks.pt: the state cannot be saved (File too large)" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""
    assert names(tmp_path) == (["states", "states/blocks.pt"] if before else [])
    if before:
        assert SavedStates(tmp_path / "states", "mine", resume=True).load("blocks") == {"done": 1}


def test_a_stop_while_a_state_is_written_leaves_no_partial_file(tmp_path, monkeypatch):
    saved = SavedStates(tmp_path / "states", "mine", resume=False)
    saved.save("blocks", {"done": 1})

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved.save("blocks", STATE)
    assert names(tmp_path) == ["states", "states/blocks.pt"]
    assert saved.load("blocks") == {"done": 1}


def test_a_folder_that_cannot_be_made_or_removed_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"blocks.pt: the state cannot be saved \(Not a directory\)"):
        SavedStates(tmp_path / "file" / "states", "mine", resume=True).save("blocks", STATE)
    assert names(tmp_path) == ["file"]


def test_other_files_in_the_folder_are_left_alone(tmp_path):
    """The folder can be that of a user's experiment."""
    saved = SavedStates(tmp_path, "mine", resume=True)
    for part in ("blocks", "end-to-end", "sensitivity-0", "sensitivity-12"):
        saved.save(part, {"done": 1})
    (tmp_path / ".blocks.pt.part").write_text("of a killed run")
    (tmp_path / "model.pt").write_text("mine")
    SavedStates(tmp_path, "mine", resume=False)
    assert names(tmp_path) == ["model.pt"]
    with pytest.raises(ValueError, match="PARTS"):
        saved.save("model", {})


def test_an_empty_folder_is_removed_with_the_states(tmp_path):
    SavedStates(tmp_path / "states", "mine", resume=False).save("blocks", {"done": 1})
    SavedStates.remove(tmp_path / "states")
    assert names(tmp_path) == []


@pytest.mark.parametrize("content", [{"fingerprint": "mine"}, [1, 2], torch.zeros(3)])
def test_other_files_of_torch_are_no_states(tmp_path, content):
    torch.save(content, tmp_path / "blocks.pt")
    with pytest.raises(ConfigError, match="not a saved state"):
        SavedStates(tmp_path, "mine", resume=True).load("blocks")
