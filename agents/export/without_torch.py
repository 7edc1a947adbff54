"""Run as a program of its own: scores from an ONNX file, by onnxruntime and numpy alone.

    python -I without_torch.py FOLDER

FOLDER holds ``model.onnx`` and ``states.npz``, the inputs by their names; ``scores.npy`` is written there. torch cannot
be imported in this process: what is tried here is that the file needs none.
"""

import sys
from pathlib import Path

BATCH = 64


def main(folder: Path) -> None:
    """Score all states."""
    import numpy as np
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(
        (folder / "model.onnx").read_bytes(), options, providers=["CPUExecutionProvider"]
    )
    with np.load(folder / "states.npz", allow_pickle=False) as stored:
        states = {name: stored[name] for name in stored.files}
    rows = len(next(iter(states.values())))
    parts = [
        session.run(["scores"], {name: value[start : start + BATCH] for name, value in states.items()})[0]
        for start in range(0, rows, BATCH)
    ]
    np.save(folder / "scores.npy", np.concatenate(parts), allow_pickle=False)


if __name__ == "__main__":
    sys.modules["torch"] = None  # type: ignore[assignment]  # importing it fails from here on
    main(Path(sys.argv[1]))
    loaded = {name.partition(".")[0] for name, module in sys.modules.items() if module is not None}
    if stray := loaded & {"torch", "polydistill", "polydistill_agents", "stable_baselines3"}:
        sys.exit(f"this process has loaded {', '.join(sorted(stray))}")
