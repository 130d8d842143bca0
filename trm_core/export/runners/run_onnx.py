"""Answers samples with this folder's step.onnx: needs numpy and onnxruntime, and nothing else.

    python run_onnx.py samples.npz  # sketches [n, k, D], children [n, k, m, D], ...; tokens [n, k], puzzles [n]

From Python: Model(folder)(sketches, children) or Model(folder)(tokens=tokens). children may be a function (row,
capsule) -> [m, D], called only for capsules that the model opens.
"""

import argparse
import json
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
        state |= {"price": np.full(n, spec["price_level"] if price is None else price, np.float32)}
        k, kinds = spec["children"][0], {"tokens": np.int64, "puzzles": np.int64}
        given = {"puzzles": np.full(n, spec.get("blank_puzzle", 0)), "mask": np.ones((n, k), bool)} | given
        state |= {name: np.asarray(x, kinds.get(name)) for name, x in given.items() if name in spec["inputs"]}
        if "children" in spec["inputs"]:  # zeros until they are opened
            state |= {"children": np.zeros((n, *spec["children"]), np.float32), "expanded": np.zeros((n, k), bool)}
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("samples", type=Path, help="a .npz of these arrays")
    samples = np.load(parser.parse_args().samples)
    for answer in Model(Path(__file__).parent)(**samples):
        print(json.dumps(answer))
