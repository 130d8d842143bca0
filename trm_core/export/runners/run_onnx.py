"""Answers samples with this folder's step.onnx: needs numpy and onnxruntime, and nothing else.

    python run_onnx.py samples.npz   # sketches [n, k, D], children [n, k, m, D], mask, ...; tokens [n, k], puzzles [n]

From Python: Model(folder)(sketches, children) or Model(folder)(tokens=tokens). children may be a function (row,
capsule) -> [m, D], called only for capsules that the model opens.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnxruntime

CONTINUE, HALT, EXPAND = 0, 1, 2


class Model:
    def __init__(self, folder="."):
        self.spec = json.loads((Path(folder) / "config.json").read_text())["step"]
        self.session = onnxruntime.InferenceSession(str(Path(folder) / "step.onnx"))

    def run(self, state):
        outputs = self.session.run(None, {name: state[name] for name in self.spec["inputs"]})
        return dict(zip(self.spec["outputs"], outputs))

    def __call__(self, sketches=None, children=None, price=None, **given):
        given |= {} if sketches is None else {"sketches": np.float32(sketches)}
        spec, n = self.spec, len(given["tokens" if sketches is None else "sketches"])
        state = {name: np.tile(np.float32(first), (n, *reps)) for name, (first, reps) in spec["first"].items()}
        state |= {"price": np.full(n, price or spec["price_level"], np.float32)}
        given = {"puzzles": np.full(n, spec.get("blank_puzzle", 0))} | given
        state |= {name: np.asarray(values) for name, values in given.items() if name in spec["inputs"]}
        state |= {name: np.int64(state[name]) for name in ("tokens", "puzzles") if name in state}
        if "mask" in spec["inputs"] and "mask" not in given:
            state["mask"] = np.ones(state["sketches"].shape[:2], bool)
        if "children" in spec["inputs"]:  # zeros until they are opened
            state["children"] = np.zeros((n, *spec["children"]), np.float32)
            state["expanded"] = np.zeros(state["sketches"].shape[:2], bool)
        answers, rows, step = [None] * n, np.arange(n), 0
        while len(rows):
            step += 1
            out = self.run(state | {"steps": np.full(len(rows), step, np.int64)})
            state |= {name[5:]: value for name, value in out.items() if name.startswith("next_")}
            for place, capsule in np.argwhere(out.get("opening", np.zeros((0, 0)))):
                at = (rows[place], capsule)
                state["children"][place, capsule] = children(*at) if callable(children) else children[at]
                state["expanded"][place, capsule] = True
            for place in np.flatnonzero(out["action"] == HALT):
                opened = np.flatnonzero(state["expanded"][place]).tolist() if "expanded" in state else []
                answers[rows[place]] = {"prediction": out["logits"][place].argmax(-1).tolist(), "steps": step,
                                        "opened": opened, "confidence": float(out["confidence"][place])}
            keep = out["action"] != HALT
            rows, state = rows[keep], {name: value[keep] for name, value in state.items()}
        return answers


if __name__ == "__main__":
    for answer in Model(Path(__file__).parent)(**np.load(sys.argv[1])):
        print(json.dumps(answer))
