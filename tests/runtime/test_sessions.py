"""How runtimes are loaded."""

import os
import subprocess
import sys

import pytest

from qgait_ptq.runtime.sessions import TELEMETRY, is_installed
from tests.runtime.small_model import METADATA, save, small_model

OPEN = """
import sys
from pathlib import Path
from qgait_ptq.runtime.sessions import OpenVinoSession
OpenVinoSession(Path(sys.argv[1]), threads=1)
import {telemetry}
"""


@pytest.mark.skipif(not is_installed("openvino"), reason="needs OpenVINO")
def test_openvino_is_loaded_without_its_telemetry(tmp_path):
    """It would write into the home folder, and report to a server. Later imports of it work."""
    home, path = tmp_path / "home", save(small_model(METADATA), tmp_path)
    home.mkdir()
    # On a CI machine, OpenVINO sends nothing anyway.
    env = {name: value for name, value in os.environ.items() if name not in ("CI", "TF_BUILD", "JENKINS_URL")}
    code = OPEN.format(telemetry=TELEMETRY)
    subprocess.run([sys.executable, "-c", code, path], env=env | {"HOME": str(home)}, check=True)
    assert list(home.iterdir()) == []
