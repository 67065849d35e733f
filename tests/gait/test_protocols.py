import itertools
import os

import numpy as np
import pytest
import torch

from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.gait.data.dataset import GaitDataset, SequenceRecord
from qgait_ptq.gait.data.gait_data import GaitData
from qgait_ptq.gait.data.partition import read_partition
from qgait_ptq.gait.metrics import part_distances
from qgait_ptq.gait.protocol_accuracy import evaluate_embeddings
from qgait_ptq.gait.protocols import PROTOCOLS, get_protocol, make_test_set

CONDITIONS = [*(f"nm-0{i}" for i in range(1, 7)), "bg-01", "bg-02", "cl-01", "cl-02"]
VIEWS = ["000", "018", "036"]


def records_of(subjects, conditions=CONDITIONS, views=VIEWS):
    return [
        SequenceRecord(subject, condition, view, lambda: np.zeros((1, 64, 44), np.uint8))
        for subject, condition, view in itertools.product(subjects, conditions, views)
    ]


def noisy_embeddings(records, noise, seed=0):
    """An embedding of the identity, and noise."""
    rng = np.random.default_rng(seed)
    centres = {s: rng.standard_normal((4, 2)) for s in sorted({r.subject for r in records})}
    return torch.tensor(
        np.stack([centres[r.subject] + noise * rng.standard_normal((4, 2)) for r in records])
    ).float()


def casia_b_by_hand(embeddings, records, probe_conditions):
    """OpenGait's evaluator, spelled out: rank-1 per (probe view, gallery view), identical view left out."""
    gallery = [i for i, r in enumerate(records) if r.condition in CONDITIONS[:4]]
    accuracies = []
    for probe_view, gallery_view in itertools.permutations(VIEWS, 2):
        columns = [i for i in gallery if records[i].view == gallery_view]
        probes = [
            i for i, r in enumerate(records) if r.condition in probe_conditions and r.view == probe_view
        ]
        distances = part_distances(embeddings[probes], embeddings[columns])
        nearest = distances.argmin(1)
        accuracies.append(
            np.mean(
                [
                    records[p].subject == records[columns[n]].subject
                    for p, n in zip(probes, nearest, strict=True)
                ]
            )
        )
    return 100 * np.mean(accuracies)


def test_casia_b_is_the_mean_over_view_pairs_without_the_identical_view():
    records = records_of([f"{i:03d}" for i in range(6)])
    embeddings = noisy_embeddings(records, 1.5)
    accuracy = evaluate_embeddings(
        embeddings, records, make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])
    )
    for name, conditions in (("nm", CONDITIONS[4:6]), ("bg", CONDITIONS[6:8]), ("cl", CONDITIONS[8:])):
        assert accuracy.rank1[name] == pytest.approx(casia_b_by_hand(embeddings, records, conditions))
        assert 0 < accuracy.rank1[name] < 100
    assert accuracy.rank1["mean"] == pytest.approx(np.mean([accuracy.rank1[c] for c in ("nm", "bg", "cl")]))


def test_the_identical_view_helps_nobody():
    """Embeddings that tell the view, not the person, must not score."""
    records = records_of(["a", "b"])
    embeddings = torch.tensor([[[float(VIEWS.index(r.view))]] for r in records])
    embeddings += 0.01 * torch.randn(embeddings.shape, generator=torch.Generator().manual_seed(0))
    accuracy = evaluate_embeddings(
        embeddings, records, make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])
    )
    assert 20 < accuracy.rank1["mean"] < 80


def test_perfect_embeddings_score_one_hundred_in_everything():
    records = records_of(["a", "b", "c"])
    accuracy = evaluate_embeddings(
        noisy_embeddings(records, 0), records, make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])
    )
    assert set(accuracy.rank1.values()) == {100}
    assert accuracy.mean_average_precision == 100
    assert accuracy.mean_inverse_negative_penalty == 100
    assert accuracy.cmc == [100] * 20


def test_oumvlp_takes_01_as_gallery_and_00_as_probe():
    records = records_of(["a", "b"], ["00", "01"])
    test_set = make_test_set(GaitDataset(records), get_protocol("oumvlp"))
    assert {records[i].condition for i in test_set.gallery} == {"01"}
    assert {records[i].condition for i in test_set.all_probes} == {"00"}


def test_gait3d_takes_its_probes_from_the_partition_and_ranks_the_whole_gallery():
    records = records_of(["a", "b"], ["cam1", "cam2"], ["s1", "s2"])
    data = GaitDataset(records)
    test_set = make_test_set(data, get_protocol("gait3d"), ["a-cam1-s1", "b-cam2-s2"])
    assert [records[i].name for i in test_set.all_probes] == ["a/cam1/s1", "b/cam2/s2"]
    assert len(test_set.gallery) == 6
    accuracy = evaluate_embeddings(noisy_embeddings(records, 0), records, test_set)
    assert accuracy.rank5["all"] == 100
    with pytest.raises(DataError, match="PROBE_SET"):
        make_test_set(data, get_protocol("gait3d"))


def test_a_listed_probe_that_fits_several_sequences_is_refused():
    """Names of folders can have the sign that joins them."""
    ambiguous = [*records_of(["p"], ["1-a", "x"], ["0"]), *records_of(["p-1"], ["a", "x"], ["0"])]
    with pytest.raises(DataError, match=r"p-1-a-0 in PROBE_SET fits 2 .*\(p-1/a/0, p/1-a/0\); rename"):
        make_test_set(GaitDataset(ambiguous), get_protocol("gait3d"), ["p-x-0", "p-1-a-0"])
    test_set = make_test_set(GaitDataset(ambiguous), get_protocol("gait3d"), ["p-x-0"])
    assert [ambiguous[index].name for index in test_set.all_probes] == ["p/x/0"]


def test_conditions_are_compared_in_the_same_way_on_every_system(monkeypatch):
    monkeypatch.setattr(os.path, "normcase", str.lower)  # as on Windows
    records = records_of(["a", "b"], ["nm-01", "nm-05", "BG-01"], ["000", "090"])
    test_set = make_test_set(GaitDataset(records), get_protocol("casia-b"))
    assert list(test_set.probes) == ["nm"]


def test_grew_takes_01_as_gallery_and_02_as_probe_and_counts_all_probes():
    """Its evaluator divides by the number of probes, also of those whom the gallery does not show."""
    records = records_of(["a", "b"], ["01", "02"], ["s1"]) + records_of(["c"], ["02"], ["s1"])
    test_set = make_test_set(
        GaitDataset([*records, *records_of(["d"], ["00"], ["s1"])]), get_protocol("grew")
    )
    assert {records[i].condition for i in test_set.gallery} == {"01"}
    assert [records[i].name for i in test_set.all_probes] == ["a/02/s1", "b/02/s1", "c/02/s1"]
    accuracy = evaluate_embeddings(noisy_embeddings(records, 0), records, test_set)
    two_thirds = pytest.approx(200 / 3)
    assert accuracy.rank1 == accuracy.rank5 == accuracy.rank10 == {"all": two_thirds, "mean": two_thirds}
    assert accuracy.cmc == [two_thirds] * 20
    assert accuracy.mean_average_precision == 100


def test_a_gallery_of_another_network_is_compared_with_the_probes():
    """The distances are those between the two: a gallery that is turned away from the probes finds nobody."""
    records = records_of(["a", "b", "c"], ["nm-01", "nm-05"])
    test_set = make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])
    embeddings = noisy_embeddings(records, 0)
    same = evaluate_embeddings(embeddings, records, test_set, known=embeddings)
    assert same == evaluate_embeddings(embeddings, records, test_set)
    swapped = embeddings.clone()
    for mine, other in (("a", "b"), ("b", "c"), ("c", "a")):
        wanted = [i for i, record in enumerate(records) if record.subject == mine]
        taken = [i for i, record in enumerate(records) if record.subject == other]
        swapped[wanted] = embeddings[taken]
    assert evaluate_embeddings(embeddings, records, test_set, known=swapped).rank1["mean"] == 0


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (records_of(["a"]), "one identity only"),
        (records_of(["a", "b"], ["bg-01"]), "no gallery"),
        (records_of(["a", "b"], ["nm-01"]), "no probe sequence"),
        (records_of(["a"], ["nm-01"]) + records_of(["b"], ["nm-05"]), "none of the 1 probe identities"),
        (records_of(["a", "b"], views=["090"]), "of another view"),
    ],
)
def test_test_sets_that_cannot_be_ranked_are_refused(records, message):
    with pytest.raises(DataError, match=message):
        make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])


def test_a_probe_set_without_a_pair_of_views_is_refused_by_name():
    others = records_of("ab", ["nm-05", "cl-01"], ["000", "090"])
    records = records_of("ab", ["nm-01", "bg-01"], ["090"]) + others
    message = "for the probes bg: they and the gallery are of view 090 only, .*Add another view"
    with pytest.raises(DataError, match=message):
        make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])
    make_test_set(GaitDataset([*records, *records_of("a", ["nm-02"], ["000"])]), PROTOCOLS["casia-b"])


def test_probe_sets_without_a_sequence_are_not_counted():
    records = records_of("ab")
    complete = make_test_set(GaitDataset(records), PROTOCOLS["casia-b"])
    kept = [i for i, record in enumerate(records) if not record.condition.startswith("cl")]
    left = complete.with_sequences(kept)
    assert list(left.probes) == ["nm", "bg"]
    assert "is left of cl:" in complete.missing_note(left)
    some = [records[i] for i in kept]
    accuracy = evaluate_embeddings(noisy_embeddings(some, 0.1), some, left)
    assert list(accuracy.rank1) == ["nm", "bg", "mean"]


def test_a_probe_set_without_a_pair_of_views_is_left_out_if_others_have_one():
    others = records_of("ab", ["nm-05"], ["000", "090"])
    data = GaitDataset(
        records_of("ab", ["nm-01"], ["000", "090"]) + records_of("ab", ["bg-01"], ["090"]) + others
    )
    complete = GaitData(data, data, make_test_set(data, PROTOCOLS["casia-b"]))
    kept = [i for i, r in enumerate(data.records) if (r.condition, r.view) != ("nm-01", "000")]
    left = complete.with_test(kept)
    assert list(left.test_set.probes) == ["nm"]
    assert "is left of bg:" in complete.test_set.missing_note(left.test_set)
    records = left.test.records
    accuracy = evaluate_embeddings(noisy_embeddings(records, 0.1), records, left.test_set)
    assert list(accuracy.rank1) == ["nm", "mean"]
    kept = [i for i in kept if data.records[i].view == "090"]
    with pytest.raises(DataError, match=r"6 of 10 test sequences are left: .*of another view"):
        complete.with_test(kept)


def test_sequences_that_are_left_must_make_a_ranking():
    data = GaitDataset(records_of("ab"))
    test_set = make_test_set(data, PROTOCOLS["casia-b"])
    complete = GaitData(data, data, test_set)
    only = [i for i, r in enumerate(data.records) if (r.subject == "a") == (r.condition in CONDITIONS[:4])]
    for kept, message in ((only, "none of the 1 probe identities"), (test_set.gallery, "no probe sequence")):
        with pytest.raises(DataError, match=f"{len(kept)} of 60 test sequences are left: .*{message}"):
            complete.with_test(kept)


def test_unknown_protocols_are_refused_with_the_known_ones():
    with pytest.raises(ConfigError, match="casia-b"):
        get_protocol("lfw")


def test_partition_is_read_with_its_probes(tmp_path):
    path = tmp_path / "p.json"
    path.write_text('{"TRAIN_SET": ["1"], "TEST_SET": ["2"], "PROBE_SET": ["2-a-b"], "extra": 1}')
    assert read_partition(path).probes == ("2-a-b",)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nothing", "not a valid JSON"),
        ("[]", "not a partition"),
        ('{"TRAIN_SET": ["1"]}', "TEST_SET"),
        ('{"TRAIN_SET": ["1", "2"], "TEST_SET": ["2"]}', "in TRAIN_SET and in TEST_SET"),
    ],
)
def test_broken_partitions_are_refused(text, message, tmp_path):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        read_partition(path)
