import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from qgait_ptq.capture.loading import load_model
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.walkers.population import Split, split_identities
from qgait_ptq.gait.walkers.rendering import write_walkers
from qgait_ptq.gait.zoo import NETWORKS

SCRIPT = Path(__file__).parents[2] / "examples" / "train_reference.py"


@pytest.fixture(scope="module")
def train_reference():
    spec = importlib.util.spec_from_file_location("train_reference", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    sys.modules["train_reference"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("train")
    write_walkers(root, Split.TRAIN, split_identities(Split.TRAIN, 5), views_per_trial=2, array_format="npz")
    return root


def settings(module, network="gaitset-small", iterations=4):
    return module.Settings(network, iterations, 2, 2, 3, 1e-2, 1e-3, 2, seed=0)


@pytest.mark.slow
def test_a_resumed_run_gives_the_weights_of_an_uninterrupted_one(train_reference, root, tmp_path):
    data = train_reference.load_into_memory(GaitDataset.from_directory(root))
    weights = []
    for interrupted in (False, True):
        trainer = train_reference.Trainer(data, settings(train_reference), torch.device("cpu"))
        while trainer.iteration < 4:
            if interrupted and trainer.iteration == 2:
                trainer.save(tmp_path / "state")
                trainer = train_reference.Trainer(data, settings(train_reference), torch.device("cpu"))
                trainer.resume(tmp_path / "state")
            trainer.step(*trainer.batch(trainer.iteration))
        weights.append(trainer.network.state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.slow
def test_training_lowers_the_loss(train_reference, root):
    data = train_reference.load_into_memory(GaitDataset.from_directory(root))
    recipe = settings(train_reference, iterations=30)
    trainer = train_reference.Trainer(data, recipe, torch.device("cpu"))
    losses = [trainer.step(*trainer.batch(i % 2))[1] for i in range(30)]
    assert sum(losses[-4:]) < 0.7 * sum(losses[:4])


def test_triplet_loss_is_the_mean_over_violating_triplets(train_reference):
    generator = torch.Generator().manual_seed(0)
    embedding, labels = torch.randn(6, 4, 2, generator=generator), torch.tensor([0, 0, 1, 1, 2, 2])
    expected = []
    for part in range(2):
        violations = []
        for a in range(6):
            for p in range(6):
                for n in range(6):
                    if a != p and labels[a] == labels[p] != labels[n]:
                        gap = (embedding[a, :, part] - embedding[p, :, part]).norm()
                        gap = gap - (embedding[a, :, part] - embedding[n, :, part]).norm() + 0.2
                        if gap > 0:
                            violations.append(gap)
        expected.append(torch.stack(violations).mean())
    given = train_reference.triplet_loss(embedding, labels)
    torch.testing.assert_close(given, torch.stack(expected).mean(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_the_script_writes_a_checkpoint_that_names_its_network(root, tmp_path):
    out = tmp_path / "model.pt"
    command = [sys.executable, str(SCRIPT), str(root), "--out", str(out), "--network", "gaitset-small"]
    command += ["--iterations=2", "--identities=2", "--sequences=2", "--frames=3", "--held-out=2"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert [file.name for file in tmp_path.iterdir()] == ["model.pt"]
    assert load_model(out, zoo=NETWORKS).kind == "checkpoint that names its network"
