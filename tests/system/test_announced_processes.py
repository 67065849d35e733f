"""What the variables of torchrun say about a process."""

import pytest

from qgait_ptq.errors import ConfigError
from qgait_ptq.system.processes import announced

TORCHRUN = {"RANK": "5", "LOCAL_RANK": "1", "WORLD_SIZE": "8", "MASTER_ADDR": "localhost", "MASTER_PORT": "1"}


@pytest.fixture
def variables(monkeypatch):
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_cores_of_a_machine_are_shared_by_its_own_processes(variables):
    variables.setenv("LOCAL_WORLD_SIZE", "2")
    found = announced()
    assert (found.rank, found.local_rank, found.count, found.here) == (5, 1, 8, 2)


def test_without_their_number_all_processes_are_on_one_machine(variables):
    assert announced().here == 8


def test_without_torchrun_there_is_one_process(variables):
    variables.delenv("MASTER_PORT")
    found = announced()
    assert (found.count, found.here, found.first) == (1, 1, True)


def test_variables_that_are_no_numbers_are_refused(variables):
    variables.setenv("RANK", "first")
    with pytest.raises(ConfigError, match=r"RANK='first'.*these variables must be numbers"):
        announced()
