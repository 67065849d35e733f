"""The partition file of a data set: identities for training (and calibration), and for tests."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from qgait_ptq.errors import DataError
from qgait_ptq.gait.data.limits import PARTITION_BYTES, error_text
from qgait_ptq.gait.data.notes import some_names
from qgait_ptq.system.reading import read_bytes

KEYS = ("TRAIN_SET", "TEST_SET", "PROBE_SET")


class Partition(BaseModel):
    """OpenGait's partition as JSON.

    Attributes:
        train: subjects for calibration.
        test: subjects for evaluation.
        probes: names ``subject-type-view`` of the probes, for protocols that list them (Gait3D).
        other_keys: further keys of the file with their values, which have no meaning here.
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    train: tuple[str, ...] = Field(alias="TRAIN_SET")
    test: tuple[str, ...] = Field(alias="TEST_SET")
    probes: tuple[str, ...] = Field(default=(), alias="PROBE_SET")
    other_keys: dict[str, Any] = Field(default_factory=dict, exclude=True)

    @field_validator("train", "test", "probes", mode="before")
    @classmethod
    def _check_items(cls, items: Any) -> Any:
        # pydantic describes every wrong item, which takes gigabytes for a long list of numbers.
        for index, item in enumerate(items if isinstance(items, list) else ()):
            if not isinstance(item, str):
                raise ValueError(
                    f"item {index} is of type {type(item).__name__}, expected text; "
                    "write names of folders in quotes"
                )
            if any("\ud800" <= letter <= "\udfff" for letter in item):  # no terminal can show it
                raise ValueError(f"item {index} is not valid text (half of a surrogate pair)")
        return items


def read_partition(path: Path) -> Partition:
    """Read a partition file.

    Raises:
        DataError: the file does not exist, is not JSON or not a partition, or an identity or a key is given
            twice.
    """
    data = read_bytes(path, PARTITION_BYTES, "the partition", DataError)
    repeated_keys: list[str] = []

    def to_dictionary(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        repeated_keys.extend(_repeated([key for key, _ in pairs]))  # Python would take the last of them
        return dict(pairs)

    try:
        content = json.loads(data, object_pairs_hook=to_dictionary)
    except Exception as error:  # deep nesting and long numbers raise errors of their own
        raise DataError(f"{path}: not a valid JSON file ({error_text(error)})") from None
    if repeated_keys:
        raise DataError(f"{path}: a key is given twice ({some_names(repeated_keys)}); keep one of the two")
    other_keys: dict[str, Any] = {}
    if isinstance(content, dict):
        other_keys = {key: value for key, value in content.items() if key not in KEYS}
        content = {key: content[key] for key in KEYS if key in content}
    try:
        partition = Partition.model_validate(content)
    except ValidationError as error:
        detail = error.errors()[0]
        raise DataError(
            f"{path}: not a partition ({'.'.join(map(str, detail['loc']))}: {detail['msg']}); "
            'expected {"TRAIN_SET": [...], "TEST_SET": [...]}'
        ) from None
    repeated = [
        f"{key} {some_names(names)}"
        for key, names in (("TRAIN_SET", _repeated(partition.train)), ("TEST_SET", _repeated(partition.test)))
        if names
    ]
    if repeated:
        raise DataError(
            f"{path}: identities are listed more than once ({'; '.join(repeated)}); list each of them once"
        )
    both = sorted(set(partition.train) & set(partition.test))
    if both:
        raise DataError(
            f"{path}: {len(both)} identities are in TRAIN_SET and in TEST_SET ({some_names(both)}); "
            "remove them from TRAIN_SET or from TEST_SET"
        )
    return partition.model_copy(update={"other_keys": other_keys})


def _repeated(names: Sequence[str]) -> list[str]:
    return [name for name, count in Counter(names).items() if count > 1]
