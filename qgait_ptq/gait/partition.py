"""The partition file of a data set: which identities train (and calibrate), which are tested."""

from __future__ import annotations

import json
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from qgait_ptq.errors import DataError


class Partition(BaseModel):
    """OpenGait's partition json.

    Attributes:
        train: identities whose sequences may calibrate.
        test: identities that are evaluated.
        probes: ``subject-type-view`` names of the probes, for protocols that list them (Gait3D).
    """

    model_config = ConfigDict(frozen=True, populate_by_name=True)

    train: tuple[str, ...] = Field(alias="TRAIN_SET")
    test: tuple[str, ...] = Field(alias="TEST_SET")
    probes: tuple[str, ...] = Field(default=(), alias="PROBE_SET")


def read_partition(path: Path) -> Partition:
    """Read a partition file.

    Raises:
        DataError: no such file, not JSON, not a partition, or an identity in both parts.
    """
    try:
        partition = Partition.model_validate(json.loads(path.read_text()))
    except OSError as error:
        raise DataError(f"{path}: the partition cannot be read ({error.strerror or error})") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: not a JSON file ({error})") from None
    except ValidationError as error:
        detail = error.errors()[0]
        raise DataError(
            f"{path}: not a partition ({'.'.join(map(str, detail['loc']))}: {detail['msg']}); "
            'expected {"TRAIN_SET": [...], "TEST_SET": [...]}'
        ) from None
    both = sorted(set(partition.train) & set(partition.test))
    if both:
        raise DataError(f"{path}: {len(both)} identities both train and test ({', '.join(both[:5])})")
    return partition
