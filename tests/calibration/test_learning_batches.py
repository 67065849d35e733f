"""The batches that IDC and fine-tuning learn from."""

import numpy as np
import pytest

import qgait_ptq as qg
from qgait_ptq.calibration.learning_batches import refit_batches
from qgait_ptq.calibration.stages import ChooseClips
from qgait_ptq.config.schema import FinetuneConfig, IdcConfig
from qgait_ptq.gait.data.frame_pool import FramePool
from tests.conftest import SHALLOW, SHORT, make_gaitbase


@pytest.fixture(scope="module")
def state(few_walkers):
    config = qg.QuantConfig(idc=IdcConfig(enabled=False), finetune=FinetuneConfig(enabled=True, refit=9))
    prepared = qg.prepare(make_gaitbase(**SHALLOW), few_walkers, config, device="cpu")
    return qg.run_stages([ChooseClips()], prepared)


def test_clips_of_the_refit_are_not_longer_than_the_data(state):
    """Repeated frames would change what a network computes that sums over frames."""
    assert state.config.correction_frames > SHORT
    frames = np.zeros((20 * SHORT, 64, 44), np.uint8)
    pool = FramePool(frames, np.array([(SHORT * i, SHORT) for i in range(20)]))
    batches = list(refit_batches(state, pool))
    assert {batch.shape[1] for batch in batches} == {SHORT}
    assert sum(len(batch) for batch in batches) == 9
