"""The calibrating stages as configured, from Python."""

from dataclasses import replace

import pytest
import torch

import qgait_ptq as qg
from qgait_ptq.calibration import learning_stages
from qgait_ptq.calibration.learning_stages import fingerprint
from qgait_ptq.calibration.stages import ChooseClips
from qgait_ptq.errors import ConfigError, DataError
from qgait_ptq.quantizer.pair_order import INT16_MAX
from qgait_ptq.reference.pair_sums import bound_pair_sums
from qgait_ptq.reference.proof import prove_exactness
from qgait_ptq.report.page import render_report
from qgait_ptq.system.progress import Silent
from tests.conftest import SHALLOW, make_gaitbase
from tests.networks import draw_people
from tests.remembered import forget_exports
from tests.small_network import Small

SMALL = {
    "weight_bits": 4,
    "activation_bits": 4,
    "calibration_sequences": 20,
    "calibration_frames": 12,
    "correction_frames": 6,
    "minimum_agreement": -1.0,
    "idc": {"steps": 6, "identities": 4, "sequences": 2, "frames": 6},
}
FINETUNE = {"finetune": {"enabled": True, "block_steps": 2, "steps": 4}}


class Listener(Silent):
    """Collects the lines that a user reads."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def quantize(data, config, **arguments):
    listener = Listener()
    given = qg.QuantConfig(**config)
    result = qg.quantize(make_gaitbase(**SHALLOW), data, given, device="cpu", progress=listener, **arguments)
    return result, listener.notes


def calibrate(data, config):
    """Run all stages before export."""
    return qg.calibrate(qg.prepare(make_gaitbase(**SHALLOW), data, qg.QuantConfig(**config), device="cpu"))


def as_data(people, records=None):
    dataset = qg.GaitDataset(records or people.records)
    return qg.GaitData(dataset, dataset)


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    """Where the fine-tuned run keeps its states."""
    return tmp_path_factory.mktemp("work") / "states"


@pytest.fixture(scope="module")
def finetuned(people, work):
    return quantize(as_data(people), SMALL | FINETUNE, work_folder=work, resume=True)


@pytest.fixture(scope="module")
def plain(people):
    """Ranges alone: all that can be left out is."""
    left_out = {"idc": {"enabled": False}, "rounding": "nearest", "bias_correction": False}
    return quantize(as_data(people), SMALL | left_out | {"equalization": "none"})


def test_idc_and_finetuning_are_in_the_report(finetuned):
    result, _ = finetuned
    calibration = result.report.to_json()["calibration"]
    for stage in (calibration["idc"], calibration["finetune"]):
        assert stage["held_out_loss"][stage["kept"]] == min(stage["held_out_loss"].values())
    assert [step for step, _ in calibration["idc"]["curve"]] == [1, 2, 3, 4, 5, 6]
    assert calibration["finetune"]["judged_by"] == "held-out identities"
    assert calibration["refit"]["kept"] in ("start", "refit")
    stages = {"equalization", "ranges", "rounding", "IDC", "frame pool", "fine-tuning", "refit"}
    assert stages <= set(result.report.seconds)
    assert result.report.parity.cosine_min > 0.999


@pytest.mark.slow
def test_the_same_seed_gives_the_same_file(finetuned, people):
    forget_exports()
    again, _ = quantize(as_data(people), SMALL | FINETUNE)
    assert again.onnx_model.SerializeToString() == finetuned[0].onnx_model.SerializeToString()


def test_the_stages_can_be_left_out(people, plain):
    state = calibrate(as_data(people), SMALL | {"idc": {"enabled": False, "frames": 6}})
    assert "IDC" not in state.seconds
    assert "idc" not in state.record
    assert "rounding" in state.seconds
    report = plain[0].report
    assert "rounding" not in report.seconds
    assert report.calibration["equalized_groups"] == 0


def test_refined_ranges_are_in_the_report_and_on_the_page(people, finetuned):
    no_idc = {"idc": {"enabled": False}}
    result, _ = quantize(as_data(people), SMALL | no_idc | {"refined_ranges": True})
    factors = result.report.calibration["refined_ranges"]
    assert factors
    assert set(factors) <= {layer.name for layer in result.report.layers}
    assert f"refined ranges: {len(factors)}" in render_report(result.report.to_json())
    assert result.report.parity.cosine_min > 0.999
    assert "refined_ranges" not in finetuned[0].report.calibration


def test_default_stages_beat_plain_ranges_where_the_network_is_judged(finetuned, plain):
    assert finetuned[0].report.agreement.sqnr_db > plain[0].report.agreement.sqnr_db + 1


def test_too_few_people_leave_the_stage_out_and_say_so(people):
    few = [record for record in people.records if record.subject in people.subjects[:3]]
    state = calibrate(as_data(people, few), SMALL)
    assert any("3 identities" in note and "left out" in note for note in state.notes)
    assert "left_out" in state.record["idc"]
    asked = SMALL | {"idc": SMALL["idc"] | {"enabled": True}}
    with pytest.raises(DataError, match=r"3 identities .* needs 8"):
        quantize(as_data(people, few), asked)


class Scaled(Small):
    """The same weights, and another embedding."""

    def forward(self, silhouettes):
        return 2 * super().forward(silhouettes)


def test_states_of_a_network_with_other_operators_are_not_its_own(monkeypatch):
    data = draw_people(6, 2, 8)

    def digest(network):
        state = qg.prepare(network.eval(), data, qg.QuantConfig(**SMALL), device="cpu")
        return fingerprint(ChooseClips().run(state, Silent()))

    own = digest(Small())
    assert digest(Small()) == own
    assert digest(Scaled()) != own
    monkeypatch.setattr(learning_stages, "version", lambda package: "0.0")
    assert digest(Small()) != own


def test_nothing_is_said_of_idc_where_it_is_disabled(people):
    """Fine-tuning looks at the labels, too."""
    few = [record for record in people.records if record.subject in people.subjects[:3]]
    singles = [r for r in people.records if r.subject != people.subjects[0] or r.condition.endswith("1")]
    disabled = SMALL | {"idc": SMALL["idc"] | {"enabled": False}, **FINETUNE}
    prepared = qg.prepare(
        make_gaitbase(**SHALLOW), as_data(people, few), qg.QuantConfig(**disabled), device="cpu"
    )
    for records in (few, singles):
        state = ChooseClips().run(replace(prepared, data=as_data(people, records)), Silent())
        assert not [note for note in state.notes if "IDC" in note]
        assert "idc" not in state.record


def test_one_identity_and_single_sequences_are_met_with_a_line(people):
    one = [record for record in people.records if record.subject == people.subjects[0]]
    notes = calibrate(as_data(people, one), SMALL).notes
    assert any("1 identities" in note and "left out" in note for note in notes)
    singles = [r for r in people.records if r.subject != people.subjects[0] or r.condition.endswith("1")]
    notes = calibrate(as_data(people, singles), SMALL).notes
    assert "1 identities have only one sequence; IDC does not use them" in notes


def test_copies_are_left_out_with_a_line(people):
    copied = as_data(people, [*people.records, people.records[0]])
    notes = calibrate(copied, SMALL | {"calibration_sequences": 99}).notes
    (note,) = [note for note in notes if note.startswith("1 calibration sequences repeat others; rounding")]
    assert note.endswith("and ranges are measured on all")


def test_states_are_removed_when_the_result_is_there(finetuned, work, tmp_path):
    result, notes = finetuned
    assert any("no saved state to resume" in note for note in notes)
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError):
        result.save(tmp_path / "file" / "out")
    assert work.exists()  # the work is not lost with the place for its result
    result.save(tmp_path / "out")
    assert not work.exists()


@pytest.mark.slow
def test_memory_for_the_backward_pass_decides_the_micro_batch_not_the_result(people):
    roomy, _ = quantize(as_data(people), SMALL)
    tight, _ = quantize(as_data(people), SMALL | {"idc": SMALL["idc"] | {"memory_mb": 1}})
    first, second = (torch.tensor(r.report.calibration["idc"]["curve"]) for r in (roomy, tight))
    torch.testing.assert_close(first[:2], second[:2], rtol=0.2, atol=0)


def test_the_pairs_of_a_file_stay_within_16_bits_after_idc_and_finetuning(finetuned):
    """The first and the last layer have 8 bits: theirs are the pairs that could saturate."""
    result, _ = finetuned
    sums = bound_pair_sums(result.onnx_model)
    assert sums.safe
    assert max(layer.bound for layer in sums.layers) > 0.9 * INT16_MAX  # the limit was reached, not avoided
    assert result.report.pair_sums.safe
    assert result.report.metadata()["pair_sums"]["weight_range"] == "safe"


def test_additions_of_a_file_are_rounded_alike_after_idc_and_finetuning(finetuned):
    result, _ = finetuned
    proof = prove_exactness(result.onnx_model)
    assert len(proof.additions) > 1
    assert proof.exact
    assert result.report.pair_sums.differing_additions == []
