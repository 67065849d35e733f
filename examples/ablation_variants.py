"""The rows of the ablation: the method, its alternatives and its controls."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Any

WIDTHS = {"W8A8": (8, 8), "W4A8": (4, 8), "W4A4": (4, 4), "W3A3": (3, 3), "W2A4": (2, 4), "W2A2": (2, 2)}


@dataclass(frozen=True)
class Variant:
    """One way of quantizing.

    Attributes:
        name: of the row.
        against: the row that it is compared with.
        settings: of `QuantConfig`; those of stages that do not run play no role.
        stages: which run, of `STAGES`: ``ranges`` (with rounding and bias correction) only, then IDC, then
            fine-tuning; ``finetune-only`` leaves IDC out.
        labels: ``true``, ``shuffled``, or ``none``: each clip is its own identity, so that all pairs count;
            ``shuffled for the refit``: all other stages see the true ones.
    """

    name: str
    against: str | None
    settings: dict[str, Any] = field(default_factory=dict)
    stages: str = "ranges"
    labels: str = "true"


REFIT_SHUFFLED = "shuffled for the refit"
STAGES = ("ranges", "idc", "finetune-only", "finetune")
NEAREST = {
    "rounding": "nearest",
    "bias_correction": False,
    "equalization": "none",
    "weight_observer": "minmax",
}


def _idc(**settings: Any) -> dict[str, Any]:
    return {"idc": settings}


def _finetune(**settings: Any) -> dict[str, Any]:
    return {"finetune": settings}


MAIN = (
    Variant("ranges MSE", None, NEAREST),
    Variant("ranges MSE + IDC", "ranges MSE", NEAREST, stages="idc"),
    Variant("default rounding", "ranges MSE"),
    Variant("default rounding + IDC", "default rounding", stages="idc"),
    Variant("default rounding + IDC + fine-tuning", "default rounding + IDC", stages="finetune"),
)
ALTERNATIVES = (
    Variant("ranges min-max", "ranges MSE", {**NEAREST, "observer": "minmax"}),
    Variant("ranges percentile", "ranges MSE", {**NEAREST, "observer": "percentile"}),
    Variant("ranges MSE, weights MSE", "ranges MSE", {**NEAREST, "weight_observer": "mse"}),
    Variant("ranges MSE, weights percentile", "ranges MSE", {**NEAREST, "weight_observer": "percentile"}),
    Variant("ranges MSE + equalized weights", "ranges MSE", {**NEAREST, "equalization": "weights"}),
    Variant("ranges MSE + equalized activations", "ranges MSE", {**NEAREST, "equalization": "activations"}),
    Variant("ranges MSE + bias correction", "ranges MSE", {**NEAREST, "bias_correction": True}),
    Variant("GPTQ", "ranges MSE", {**NEAREST, "rounding": "gptq"}),
    Variant("GPTQ + bias correction", "GPTQ", {**NEAREST, "rounding": "gptq", "bias_correction": True}),
    Variant("Qronos", "GPTQ", {**NEAREST, "rounding": "qronos"}),
    Variant(
        "Qronos + bias correction",
        "GPTQ + bias correction",
        {**NEAREST, "rounding": "qronos", "bias_correction": True},
    ),
    Variant("default rounding, no equalization", "default rounding", {"equalization": "none"}),
    Variant("default rounding, equalized weights", "default rounding", {"equalization": "weights"}),
    Variant("default rounding, weights min-max", "default rounding", {"weight_observer": "minmax"}),
    *(
        Variant(f"IDC, {name}", "ranges MSE + IDC", {**NEAREST, **_idc(**settings)}, stages="idc")
        for name, settings in (
            ("anchor only", {"neg_weight": 0, "pos_weight": 0}),
            ("L_neg only", {"pos_weight": 0, "anchor_weight": 0}),
            ("no anchor", {"anchor_weight": 0}),
            ("with neighbour term", {"neighbour_weight": 0.1}),
            ("soft from the start, a = 2", {"temperature": 2.0}),
        )
    ),
    Variant("IDC, labels shuffled", "ranges MSE + IDC", NEAREST, stages="idc", labels="shuffled"),
    Variant("IDC, all pairs without labels", "ranges MSE + IDC", NEAREST, stages="idc", labels="none"),
    Variant(
        "AdaRound",
        "ranges MSE",
        {
            **NEAREST,
            **_finetune(granularity="layer", drop_probability=0, learn_ranges=False, steps=0),
        },
        stages="finetune-only",
    ),
    Variant("QDrop", "ranges MSE", {**NEAREST, **_finetune(steps=0)}, stages="finetune-only"),
    Variant("+ blocks only", "default rounding + IDC", _finetune(steps=0), stages="finetune"),
    Variant(
        "+ end to end only, a = 0",
        "default rounding + IDC",
        _finetune(block_steps=0, temperature_start=0, temperature_end=0),
        stages="finetune",
    ),
    Variant("+ end to end only, a: 1 → 3", "+ end to end only, a = 0", _finetune(block_steps=0), "finetune"),
    *(
        Variant(
            f"+ end to end only, a = {a}",
            "+ end to end only, a = 0",
            _finetune(block_steps=0, temperature_start=a, temperature_end=a),
            stages="finetune",
        )
        for a in (2, 3, 4, 6)
    ),
)
CURVE = tuple(
    Variant(f"+ IDC, {count} sequences", None, {"calibration_sequences": count}, stages="idc")
    for count in (8, 16, 32, 64)
)
HARD = {"temperature_start": 0, "temperature_end": 0}
STEPS = 3000  # of the default


def _pool(name: str, against: str, labels: str = "true", **settings: Any) -> Variant:
    """Return a variant of fine-tuning after the corrections, without IDC, on a pool of sequences."""
    steps: dict[str, Any] = {"unlabelled": 2000, "steps": STEPS, "block_steps": 0, **HARD, **settings}
    return Variant(f"fine-tuning, {name}", against, _finetune(**steps), "finetune-only", labels)


BASE = f"fine-tuning, 2,000 sequences, {STEPS:,} steps"
REFINED = Variant("default rounding, refined ranges", "default rounding", {"refined_ranges": True})
FINETUNING = (
    Variant("default rounding", "ranges MSE"),
    REFINED,
    _pool(f"2,000 sequences, {STEPS:,} steps", "default rounding"),
    _pool("2,000 sequences, refit only", "default rounding", steps=0),
    _pool("2,000 sequences, no refit", BASE, refit=0),
    _pool("2,000 sequences, refit without labels", BASE, rank_weight=0),
    _pool("2,000 sequences, refit with shuffled labels", BASE, labels=REFIT_SHUFFLED),
    *(
        _pool(f"{pool:,} sequences, {steps:,} steps", "default rounding", unlabelled=pool, steps=steps)
        for pool in (60, 250, 1000, 2000)
        for steps in (600, STEPS, 6000)
        if (pool, steps) != (2000, STEPS)
    ),
    _pool("16 clips, a quarter of the steps", BASE, clips=16, steps=STEPS // 4),
    _pool("labels shuffled", BASE, labels="shuffled"),
    _pool("anchor only", BASE, labelled_every=0),
    _pool("blocks first", BASE, block_steps=200),
    _pool("a: 1 → 3", BASE, temperature_start=1, temperature_end=3),
    _pool("a = 2", BASE, temperature_start=2, temperature_end=2),
    _pool("no average", BASE, averaged=0),
    Variant(
        "QDrop on the pool",
        BASE,
        {**NEAREST, **_finetune(steps=0, unlabelled=2000, block_steps=700, refit=0)},
        stages="finetune-only",
    ),
    Variant(
        "AdaRound on the pool",
        BASE,
        {
            **NEAREST,
            **_finetune(
                granularity="layer",
                drop_probability=0,
                learn_ranges=False,
                steps=0,
                unlabelled=2000,
                refit=0,
                block_steps=1500,
                block_weights="rounding",
            ),
        },
        stages="finetune-only",
    ),
)


def _few_bits_in_additions(bits: str) -> Variant:
    """Return a variant whose additions read as few bits as layers do."""
    settings = {"elementwise_bits": WIDTHS[bits][1]}
    return Variant("default rounding, additions as narrow as layers", "default rounding", settings)


@dataclass(frozen=True)
class Job:
    """One run."""

    network: str
    checkpoint: str
    bits: str
    variant: Variant
    seed: int

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.network} {self.bits} {self.variant.name} seed {self.seed}"

    @property
    def key(self) -> str:
        """Of everything that decides the result, but for the code."""
        return json.dumps({**asdict(self), "checkpoint": ""}, sort_keys=True)


def plan_jobs(checkpoints: dict[str, str], seeds: int) -> list[Job]:
    """All runs, the most telling first, one seed after the other."""
    first = "gaitbase-small"
    parts: list[tuple[str, str, tuple[Variant, ...]]] = []
    for bits in ("W4A4", "W3A3"):
        parts += [(first, bits, MAIN), (first, bits, ALTERNATIVES)]
    parts += [(first, bits, MAIN) for bits in ("W8A8", "W4A8")]
    parts += [(first, "W4A4", CURVE), (first, "W2A4", MAIN)]
    parts += [("gaitset-small", bits, MAIN) for bits in WIDTHS]
    for network in (first, "gaitset-small"):
        parts += [
            (network, bits, (*FINETUNING, _few_bits_in_additions(bits)))
            for bits in ("W3A3", "W2A4", "W4A4", "W2A2")
        ]
    jobs: dict[str, Job] = {}
    for network, bits, variants in parts:
        if network not in checkpoints:
            continue
        # The slow stages go on from what the fast ones leave behind.
        for variant in sorted(variants, key=lambda variant: STAGES.index(variant.stages)):
            planned = [Job(network, checkpoints[network], bits, variant, seed) for seed in range(seeds)]
            jobs |= {job.key: job for job in planned}  # some variants are part of several comparisons
    return list(jobs.values())
