"""From silhouettes to a name: the quantized network in ONNX Runtime.

    python examples/deploy_onnxruntime.py qgait-out/model.onnx GALLERY_FOLDER PROBE_FILE

GALLERY_FOLDER holds known people, name/walk/view/*.pkl; PROBE_FILE is one sequence, uint8 [s, h, w].
For networks with several inputs, use `qgait-ptq embed`.
"""

import sys
from pathlib import Path

import qgait_ptq as qg
from qgait_ptq.gait import Reading, read_sequence

RUNTIME = "onnxruntime"


def main(model: str, gallery_folder: str, probe_file: str) -> None:
    """Embed the known people once, then look up the unknown one."""
    embedder = qg.Embedder(model, runtime=RUNTIME)
    # Files are read as for calibration. The embedder cuts columns itself.
    reading = Reading(cut_columns=0, raw=embedder.raw, modalities=embedder.modalities)
    known = qg.GaitDataset.from_directory(gallery_folder, reading=reading)
    gallery = embedder.embed([silhouettes for silhouettes, _ in known])
    probe = embedder(read_sequence(Path(probe_file), reading))
    found = embedder.match(gallery, probe, top_k=3)
    for index, distance in zip(found.indices[0], found.distances[0], strict=True):
        record = known.records[index]
        print(f"{record.subject}  distance {distance:.3f}  ({record.name})")


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(*sys.argv[1:])
