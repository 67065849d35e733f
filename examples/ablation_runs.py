"""One run of the ablation: calibrate with a variant, and rank the test walkers."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ablation_variants import REFIT_SHUFFLED, WIDTHS, Job
from torch import Tensor, fx

import qgait_ptq as qg
from qgait_ptq.calibration import (
    CalibrateDistances,
    ChooseClips,
    CollectFrames,
    Correct,
    Equalize,
    Finetune,
    Refit,
    SetRanges,
)
from qgait_ptq.errors import QgaitError
from qgait_ptq.gait import (
    Condition,
    GaitDataset,
    PackedSilhouettes,
    PKSampler,
    SequenceRecord,
    Split,
    embed_dataset,
    embedding_cosine,
    embedding_sqnr,
    part_distances,
    rank_gallery,
    render_walkers,
)
from qgait_ptq.gait.zoo import NETWORKS

CALIBRATION_IDENTITIES, FIRST_CALIBRATION = 16, 1000
TEST_IDENTITIES, FIRST_TEST, TEST_VIEWS = 30, 1000, 1
DISTRACTORS = 150
POOL_WALKERS, FIRST_IN_POOL = 1000, 5000  # two walks of each
POOL_TRIALS = ((Condition.NORMAL, 1), (Condition.CLOTHES, 1))
SIZE = (64, 44)
CONDITIONS = ("nm", "bg", "cl")
KIB = 1024
GALLERY = ("nm-01", "nm-02", "nm-03", "nm-04")
ONE_WALK = ((Condition.NORMAL, 1),)
# Fewer frames and steps than the toolkit's defaults, the same for all variants: the experiment is long.
COMMON: dict[str, Any] = {
    "calibration_frames": 16,
    "correction_frames": 24,
    "minimum_agreement": -1.0,
    "idc": {"frames": 16, "identities": 4},
    "finetune": {"block_steps": 100, "steps": 60},
}
# Settings that play no role before the refit.
OF_REFIT = {"refit", "rank_weight", "rank_steps", "rank_learning_rate"}
# What makes figures comparable; runs under other terms are not mixed with these.
TERMS = json.loads(json.dumps([COMMON, CALIBRATION_IDENTITIES, TEST_IDENTITIES, TEST_VIEWS, DISTRACTORS]))


def render_missing(folder: Path, seeds: int) -> None:
    """Render all walkers once; runs read them from files."""
    for name in ("test", "pool", *(f"calibration-{seed}" for seed in range(seeds))):
        if not (folder / f"{name}.npz").exists():
            _render(folder / f"{name}.npz", name)


def _render(path: Path, name: str) -> None:
    if name == "test":
        write_walkers(path, render_tested(TEST_IDENTITIES, TEST_VIEWS), render_distractors(DISTRACTORS))
    elif name == "pool":
        write_walkers(path, render_pool())
    else:
        write_walkers(path, render_calibration(int(name.rpartition("-")[2])))


def render_calibration(seed: int) -> GaitDataset:
    """Render the calibration walkers of a seed."""
    first = FIRST_CALIBRATION + CALIBRATION_IDENTITIES * seed
    return render_walkers(Split.CALIBRATION, CALIBRATION_IDENTITIES, first=first, views_per_trial=1)


def render_pool() -> GaitDataset:
    """Render the walkers of the pool for fine-tuning. Only the refit uses their labels."""
    return render_walkers(
        Split.CALIBRATION, POOL_WALKERS, first=FIRST_IN_POOL, trials=POOL_TRIALS, views_per_trial=1
    )


def render_tested(identities: int, views: int) -> GaitDataset:
    """Render test walkers."""
    return render_walkers(Split.TEST, identities, first=FIRST_TEST, views_per_trial=views)


def render_distractors(identities: int) -> GaitDataset:
    """Render one sequence of each distractor."""
    return render_walkers(Split.DISTRACTOR, identities, trials=ONE_WALK, views_per_trial=1)


def write_walkers(path: Path, *datasets: GaitDataset) -> None:
    """Write walkers into one file, one bit a pixel."""
    arrays: dict[str, Any] = {}
    for data in datasets:
        for silhouettes, record in data:
            arrays[record.name] = np.packbits(silhouettes > 0, axis=-1)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".part.npz")
    np.savez(beside, **arrays)
    os.replace(beside, path)


@cache
def read_walkers(path: Path) -> GaitDataset:
    """Read what `write_walkers` wrote."""
    records = []
    with np.load(path) as arrays:
        for key in arrays.files:
            subject, condition, view = key.split("/")
            packed = PackedSilhouettes.from_bits(arrays[key], SIZE[1])
            records.append(SequenceRecord(subject, condition, view, packed))
    return GaitDataset(records)


def with_labels(state: qg.State, labels: str) -> qg.State:
    """The state with labels as they are, shuffled or taken away, for the controls."""
    data = state.training
    if data is None or labels in ("true", REFIT_SHUFFLED):
        return state
    rng = np.random.default_rng(state.config.seed)

    def changed(own: Tensor) -> Tensor:
        if labels == "shuffled":
            return own[torch.from_numpy(rng.permutation(len(own)))]
        return torch.arange(len(own))

    learned = replace(data.clips, labels=changed(data.clips.labels))
    # Without labels, batches are drawn as before, so that the steps see the same clips.
    names = [str(int(label)) for label in (learned if labels == "shuffled" else data.clips).labels]
    config = state.config.idc
    sampler = PKSampler(names, min(config.identities, len(set(names))), config.sequences)
    held_out = replace(data.held_out, labels=changed(data.held_out.labels))
    return replace(state, training=replace(data, clips=learned, sampler=sampler, held_out=held_out))


def with_pool_labels(state: qg.State, labels: str) -> qg.State:
    """The state with labels of the pool as they are, shuffled or taken away."""
    if labels == "true":
        return state
    own = state.pool.labels
    shuffled = np.random.default_rng(state.config.seed).permutation(own)
    changed = np.full_like(own, -1) if labels == "none" else shuffled
    return replace(state, maybe_pool=replace(state.pool, labels=changed))


class Timer:
    """Listens to stages and adds up their process time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak = 0.0  # MB, of a run that this one continues

    @contextmanager
    def stage(self, name: str, steps: int | None = None) -> Iterator[Callable[[], None]]:
        """Time a stage."""
        started = time.process_time()
        yield lambda: None
        self.seconds[name] = self.seconds.get(name, 0) + time.process_time() - started

    def note(self, text: str) -> None:
        """Notes are in the record, too."""

    def resume(self, seconds: dict[str, float], peak: float) -> None:
        """Continue from the times and the memory of another run."""
        self.seconds, self.peak = dict(seconds), max(self.peak, peak)


def execute(job: Job, work: Path, threads: int, device: str = "cpu") -> dict[str, Any]:
    """Run one job.

    Args:
        job: what.
        work: folder of the walkers and of states that runs share.
        threads: of torch.
        device: ``cpu`` or ``cuda``.
    """
    torch.set_num_threads(threads)
    _reset_peak()
    weight_bits, activation_bits = WIDTHS[job.bits]
    settings: dict[str, Any] = {
        "weight_bits": weight_bits,
        "activation_bits": activation_bits,
        "seed": job.seed,
        **COMMON,
        **job.variant.settings,
    }
    for stage in ("idc", "finetune"):
        settings[stage] = {**COMMON[stage], **job.variant.settings.get(stage, {})}
    settings["finetune"]["enabled"] = job.variant.stages.startswith("finetune")
    config = qg.QuantConfig.model_validate(settings)
    timer = Timer()
    data = read_walkers(work / "walkers" / f"calibration-{job.seed}.npz")
    result: dict[str, Any] = {"key": job.key, "job": {**asdict(job), "checkpoint": Path(job.checkpoint).name}}
    result |= {"terms": TERMS, "checkpoint_sha256": checkpoint_digest(job.checkpoint), "device": device}
    pool = read_walkers(work / "walkers" / "pool.npz")
    given = qg.GaitData(data, data, finetuning=pool)
    state = qg.prepare(_load(job), given, config, device=device)
    try:
        state = _calibrate(state, job, timer, work / "states")
        result |= judge(job, state, work)
    except QgaitError as error:  # such as a collapsed ranking, or a file that is refused
        result["failure"] = str(error)
    return result | {
        "record": dict(state.record),
        "seconds": {name: round(value, 2) for name, value in timer.seconds.items()},
        "peak_mb": round(max(timer.peak, _peak())),
    }


def _calibrate(state: qg.State, job: Job, timer: Timer, states: Path) -> qg.State:
    """The stages of a variant; what several variants share is computed once."""
    config, stages = state.config, job.variant.stages
    state = with_labels(qg.run_stages([ChooseClips()], state), job.variant.labels)
    state = qg.run_stages([Equalize()], state, timer)
    ranges = config.model_dump(exclude={"idc", "finetune", "rounding", "bias_correction", "refined_ranges"})
    name = _digest([job.network, checkpoint_digest(job.checkpoint), ranges])
    state = _shared(SetRanges(), state, states / name, timer)
    name = _digest(
        [name, config.rounding, config.bias_correction, config.refined_ranges, config.idc.held_out]
    )
    state = _shared(Correct(), state, states / name, timer)
    if state.training is None or stages == "ranges":
        return state
    if stages in ("idc", "finetune"):
        name = _digest([name, config.idc.model_dump(), job.variant.labels])
        state = _shared(CalibrateDistances(), state, states / name, timer)
    if stages.startswith("finetune"):
        state = qg.run_stages([CollectFrames()], state, timer)
        labels = "true" if job.variant.labels == REFIT_SHUFFLED else job.variant.labels
        pool = [POOL_WALKERS, FIRST_IN_POOL, *map(str, POOL_TRIALS)]
        name = _digest([name, pool, config.finetune.model_dump(exclude=OF_REFIT), labels])
        state = _shared(Finetune(), state, states / name, timer)
        state = qg.run_stages([Refit()], with_pool_labels(state, job.variant.labels), timer)
    return state


def _shared(stage: qg.Stage, state: qg.State, path: Path, timer: Timer) -> qg.State:
    """What a stage gives, from the file where another run kept it."""
    if not path.exists():
        state = qg.run_stages([stage], state, timer)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        kept = {"graph": state.quantized.state_dict(), "seconds": timer.seconds, "peak": _peak()}
        torch.save({**kept, "record": json.dumps(dict(state.record))}, beside)
        os.replace(beside, path)
        return state
    kept = torch.load(path, weights_only=True)
    if isinstance(stage, SetRanges):  # for the graph's nodes; its numbers come from the file
        one = replace(state, maybe_chosen=state.chosen.choose(1))
        state = replace(stage.apply(one), maybe_chosen=state.chosen)
    quantized = copy.deepcopy(state.quantized)
    quantized.load_state_dict(kept["graph"])
    timer.resume(kept["seconds"], kept["peak"])
    return replace(state, maybe_quantized=quantized, record=json.loads(kept["record"]))


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()[:24]


@cache
def checkpoint_digest(path: str) -> str:
    """SHA-256 of the network's weights."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _load(job: Job) -> torch.nn.Module:
    network = NETWORKS[job.network]()
    network.load_state_dict(torch.load(job.checkpoint, weights_only=True)["model"])
    return network.eval()


def judge(job: Job, state: qg.State, work: Path) -> dict[str, Any]:
    """Rank the test walkers with the quantized network, and with its file in onnxruntime."""
    data = read_walkers(work / "walkers" / "test.npz")
    reference = float_embeddings(job, partial(_embed_on, state.device, state.network), data, work)
    file = qg.export(state).file
    embeddings, from_file = embed_dataset(
        data, [partial(_embed_on, state.device, state.quantized), file.run], SIZE
    )
    return {
        "sqnr_db": embedding_sqnr(reference, embeddings),
        "cosine": float(embedding_cosine(reference, embeddings).mean()),
        "quantized": rank(embeddings, data),
        "file": rank(from_file, data),
        "float": rank(reference, data),
    }


def _embed_on(device: torch.device, network: fx.GraphModule, batch: Tensor) -> Tensor:
    return network(batch.to(device))


def float_embeddings(job: Job, network: Callable[[Tensor], Tensor], data: GaitDataset, work: Path) -> Tensor:
    """Embeddings of the float network, computed once."""
    path = work / "states" / f"{job.network}-{checkpoint_digest(job.checkpoint)[:12]}-test.pt"
    if not path.exists():
        (embeddings,) = embed_dataset(data, [network], SIZE)
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        torch.save(embeddings, beside)
        os.replace(beside, path)
    return torch.load(path, weights_only=True)


def rank(embeddings: Tensor, data: GaitDataset) -> dict[str, list[list[float]]]:
    """Rank-1 and average precision in percent, for each test identity and condition ``[i][c]``."""
    records = data.records
    distractor = str(Split.DISTRACTOR.first_identity)
    probes = [i for i, r in enumerate(records) if r.condition not in GALLERY and r.subject < distractor]
    gallery = [i for i, r in enumerate(records) if r.condition in GALLERY]
    distances = part_distances(embeddings[probes], embeddings[gallery])
    matches = torch.tensor([[records[p].subject == records[g].subject for g in gallery] for p in probes])
    ranking = rank_gallery(distances, matches)
    identity = np.array([records[p].subject for p in probes])
    condition = np.array([records[p].condition[:2] for p in probes])

    def means(values: Tensor) -> list[list[float]]:
        percent = 100 * values.double().numpy()
        return [
            [round(float(percent[(identity == i) & (condition == c)].mean()), 3) for c in CONDITIONS]
            for i in sorted(set(identity))
        ]

    return {"rank1": means(ranking.match_rank < 1), "ap": means(ranking.average_precision)}


def _reset_peak() -> None:
    if Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def _peak() -> float:
    """Peak memory of this run in MB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * KIB / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIB / 1e6
