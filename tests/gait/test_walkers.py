import json

import numpy as np
import pytest

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.dataset import GaitDataset
from qgait_ptq.gait.data.sequences import cut_width
from qgait_ptq.gait.walkers.body import build_body
from qgait_ptq.gait.walkers.camera import COLUMNS, FAR_OUTSIDE, ROWS, rasterise
from qgait_ptq.gait.walkers.clothing import Condition
from qgait_ptq.gait.walkers.contact_sheet import draw_contact_sheet, write_contact_sheet
from qgait_ptq.gait.walkers.kinematics import simulate_walk
from qgait_ptq.gait.walkers.loading import render_walkers
from qgait_ptq.gait.walkers.normalise import normalise_silhouettes
from qgait_ptq.gait.walkers.person import sample_build, sample_gait_style
from qgait_ptq.gait.walkers.population import (
    VIEWS,
    Split,
    WalkerSettings,
    render_identity,
    split_identities,
)
from qgait_ptq.gait.walkers.rendering import render_identities, write_walkers
from qgait_ptq.gait.walkers.skeleton import LEFT_LEG, RIGHT_LEG, Joint

ONE_WALK = ((Condition.NORMAL, 1),)


def walk(identity=0):
    style, build = sample_gait_style(identity), sample_build(identity)
    return simulate_walk(style, build, np.random.default_rng(0)), style, build


@pytest.mark.parametrize("identity", range(5))
def test_a_walk_goes_forward_at_human_speed_with_a_foot_on_the_ground(identity):
    clip, _, _ = walk(identity)
    speed = np.gradient(clip[:, Joint.PELVIS, 0]).mean() * 30
    assert 0.4 < speed < 2.5
    lowest = clip[:, [LEFT_LEG[3], RIGHT_LEG[3], LEFT_LEG[2], RIGHT_LEG[2]], 2].min(1)
    assert np.abs(lowest).max() < 0.12


@pytest.mark.parametrize("identity", range(5))
def test_bones_keep_their_length(identity):
    clip, style, _ = walk(identity)
    for leg in (LEFT_LEG, RIGHT_LEG):
        thigh = np.linalg.norm(clip[:, leg[1]] - clip[:, leg[0]], axis=1)
        assert np.allclose(thigh, style.thigh, rtol=0.02)  # frames are interpolated


def test_the_body_has_the_stature():
    clip, style, build = walk()
    capsules = build_body(clip, build, style.stature, None)
    top = np.maximum(
        capsules.start[..., 2] + capsules.start_radius, capsules.end[..., 2] + capsules.end_radius
    ).max(1)
    assert np.allclose(top, style.stature, atol=0.15)


def test_the_outline_is_that_of_the_nearest_capsule():
    rng = np.random.default_rng(0)
    ends = rng.uniform((-10, -10), (80, 95), (2, 3, 5, 2)).astype(np.float32)
    radii = rng.uniform(1, 6, (2, 3, 5)).astype(np.float32)
    found = rasterise(*ends, *radii)
    columns, rows = np.arange(COLUMNS, dtype=np.float32), np.arange(ROWS, dtype=np.float32)[:, None]
    for frame in range(3):
        nearest = np.full((ROWS, COLUMNS), FAR_OUTSIDE)
        for a, b, ra, rb in zip(*ends[:, frame], *radii[:, frame], strict=True):
            dx, dy = b - a
            along = ((columns - a[0]) * dx + (rows - a[1]) * dy) / (dx * dx + dy * dy + 1e-4)
            along = along.clip(0, 1)
            to_axis = np.hypot(columns - a[0] - along * dx, rows - a[1] - along * dy)
            nearest = np.minimum(nearest, to_axis - (ra + along * (rb - ra)))
        near = nearest < 3  # further away, a capsule may be left out
        assert np.allclose(found[frame][near], nearest[near], atol=1e-3)
        assert (found[frame][~near] > 2.9).all()


def test_silhouettes_fill_the_height_and_are_centred():
    for _, silhouettes in render_identity(3, WalkerSettings(noise=0), ONE_WALK):
        assert silhouettes.shape[1:] == (64, 64)
        assert set(np.unique(silhouettes)) == {0, 255}
        assert (silhouettes[:, :2].any((1, 2)) & silhouettes[:, -2:].any((1, 2))).all()
        mass = (silhouettes > 0).sum(1).cumsum(1)
        assert np.abs((mass < mass[:, -1:] / 2).sum(1) - 32).max() <= 1


def test_the_same_numbers_give_the_same_walkers():
    first, second = (list(render_identity(7, WalkerSettings(), ONE_WALK, 3)) for _ in range(2))
    for (label_a, a), (label_b, b) in zip(first, second, strict=True):
        assert label_a == label_b
        np.testing.assert_array_equal(a, b)


def test_processes_change_nothing():
    alone = [*render_identities([0, 1], trials=ONE_WALK, views_per_trial=2)]
    together = [*render_identities([0, 1], trials=ONE_WALK, views_per_trial=2, workers=2)]
    for a, b in zip(alone, together, strict=True):
        for (label_a, image_a), (label_b, image_b) in zip(a, b, strict=True):
            assert label_a == label_b
            np.testing.assert_array_equal(image_a, image_b)


def test_walkers_in_memory_are_those_that_are_rendered_one_by_one():
    data = render_walkers(Split.TEST, 2, first=3, trials=ONE_WALK, views_per_trial=2)
    first = Split.TEST.first_identity + 3
    alone = [item for walks in render_identities([first, first + 1], None, ONE_WALK, 2) for item in walks]
    assert len(data) == len(alone) == 4
    for (silhouettes, record), (label, rendered) in zip(data, alone, strict=True):
        assert record.name == f"{label.identity}/nm-01/{label.view:03d}"
        np.testing.assert_array_equal(silhouettes, cut_width(rendered))


def gait_energy(identity, number, view):
    for label, silhouettes in render_identity(identity, WalkerSettings(), ((Condition.NORMAL, number),)):
        if label.view == view:
            return silhouettes.mean(0)
    raise AssertionError(view)


def test_one_person_is_more_alike_in_two_walks_than_two_persons():
    """Else there would be nothing to recognise."""
    first, second = ([gait_energy(i, n, 90) for i in range(8)] for n in (1, 2))
    distances = np.array([[np.linalg.norm(a - b) for b in second] for a in first])
    own, others = np.diag(distances).mean(), distances[~np.eye(8, dtype=bool)].mean()
    assert own < 0.8 * others


def test_bags_and_coats_are_seen():
    normal, bag, coat = (
        np.mean([s.mean() for _, s in render_identity(1, WalkerSettings(noise=0), ((condition, 1),))])
        for condition in Condition
    )
    assert bag > normal
    assert coat > 1.05 * normal


def test_splits_are_disjoint_and_bounded():
    sets = [set(split_identities(split, 10_000)) for split in Split]
    assert sum(map(len, sets)) == len(set.union(*sets))
    with pytest.raises(ValueError, match="identities"):
        split_identities(Split.TRAIN, 10_001)


@pytest.mark.parametrize("text", ["{", "[]", '{"TRAIN_SET": 3, "TEST_SET": []}', ""])
def test_a_partition_that_cannot_be_extended_is_refused_before_anything_is_rendered(text, tmp_path):
    (tmp_path / "partition.json").write_text(text)
    with pytest.raises(DataError, match=r"partition\.json"):
        write_walkers(tmp_path, Split.TRAIN, [0], views_per_trial=1)
    assert [path.name for path in tmp_path.iterdir()] == ["partition.json"]


def test_splits_written_into_one_folder_share_its_partition(tmp_path):
    probes = {"TRAIN_SET": [], "TEST_SET": ["a"], "PROBE_SET": ["a-nm-01-090"], "VALID_SET": ["b"]}
    (tmp_path / "partition.json").write_text(json.dumps(probes))
    (identity,) = split_identities(Split.TRAIN, 1)
    write_walkers(tmp_path, Split.TRAIN, [identity], views_per_trial=1, array_format="npz")
    assert json.loads((tmp_path / "partition.json").read_text()) == probes | {"TRAIN_SET": ["00000"]}


def test_the_layout_and_its_partition_are_written(walkers_root):
    partition = json.loads((walkers_root / "partition.json").read_text())
    assert partition == {
        "TRAIN_SET": ["00000", "00001", "00002"],
        "TEST_SET": ["20000", "20001", "20002"],
    }
    data = GaitDataset.from_directory(walkers_root, partition["TEST_SET"])
    assert len(data) == 3 * 10 * 2
    assert {r.condition[:2] for r in data.records} == {"nm", "bg", "cl"}
    assert {int(r.view) for r in data.records} <= set(VIEWS)
    lengths = {len(silhouettes) for silhouettes, _ in data}
    assert len(lengths) > 5
    assert not [path for path in walkers_root.iterdir() if path.name.startswith(".")]


def test_pickles_are_as_opengait_reads_them(tmp_path):
    write_walkers(tmp_path, Split.TEST, [20000], views_per_trial=1)
    (silhouettes, record), *_ = GaitDataset.from_directory(tmp_path)
    files = list((tmp_path / record.name).iterdir())
    assert [file.name for file in files] == [f"{record.view}.pkl"]
    assert silhouettes.shape[1:] == (64, 44)


def test_an_unwritable_root_is_an_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        write_walkers(tmp_path / "file", Split.TEST, [20000], views_per_trial=1)


def test_frames_without_a_person_repeat_the_one_before():
    mask = np.zeros((2, 84, 68), bool)
    mask[0, 10:70, 30:40] = True
    silhouettes = normalise_silhouettes(mask)
    np.testing.assert_array_equal(silhouettes[0], silhouettes[1])


def test_the_contact_sheet_has_a_row_for_each_walker(tmp_path):
    sheet = draw_contact_sheet([0, 1])
    assert sheet.shape == (2 * 65, 3 * 3 * 4 * 45)
    assert 0.05 < (sheet == 255).mean() < 0.5
    write_contact_sheet(tmp_path / "sheet.png", [0])
    assert (tmp_path / "sheet.png").stat().st_size > 1000
