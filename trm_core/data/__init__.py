"""Samples on their way to the model: raw sources -> capsule file (`build`, `store`) -> batches (`stream`).

Torch is imported only by the batches and streams (`batch`, `dataset`, `stream`, `puzzles.stream`), the readers of `.pt`
files (`torch_file`, `legacy`) and, when one is asked for, the pretrained encoders of `build`.
"""
