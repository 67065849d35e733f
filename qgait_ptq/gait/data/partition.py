"""The partition file of a data set: identities for training (and calibration), and for tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.limits import PARTITION_BYTES, error_text
from qgait_ptq.system.reading import read_bytes


class Partition(BaseModel):
    """OpenGait's partition as JSON.

    Attributes:
        train: subjects for calibration.
        test: subjects for evaluation.
        probes: names ``subject-type-view`` of the probes, for protocols that list them (Gait3D).
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    train: tuple[str, ...] = Field(alias="TRAIN_SET")
    test: tuple[str, ...] = Field(alias="TEST_SET")
    probes: tuple[str, ...] = Field(default=(), alias="PROBE_SET")

    @field_validator("train", "test", "probes", mode="before")
    @classmethod
    def _check_items(cls, items: Any) -> Any:
        # pydantic describes every wrong item, which takes gigabytes for a long list of numbers.
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, str):
                raise ValueError(f"item {index} is of type {type(item).__name__}, expected text")
            if any("\ud800" <= letter <= "\udfff" for letter in item):  # no terminal can show it
                raise ValueError(f"item {index} is not valid text (half of a surrogate pair)")
        return items


def read_partition(path: Path) -> Partition:
    """Read a partition file.

    Raises:
        DataError: the file does not exist, is not JSON or not a partition, or an identity is in both sets.
    """
    data = read_bytes(path, PARTITION_BYTES, "the partition", DataError)
    try:
        content = json.loads(data)
    except Exception as error:  # deep nesting and long numbers raise errors of their own
        raise DataError(f"{path}: not a valid JSON file ({error_text(error)})") from None
    try:
        partition = Partition.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        raise DataError(
            f"{path}: not a partition ({'.'.join(map(str, detail['loc']))}: {detail['msg']}); "
            'expected {"TRAIN_SET": [...], "TEST_SET": [...]}'
        ) from None
    both = sorted(set(partition.train) & set(partition.test))
    if both:
        raise DataError(
            f"{path}: {len(both)} identities are in TRAIN_SET and in TEST_SET ({', '.join(both[:5])[:200]})"
        )
    return partition
