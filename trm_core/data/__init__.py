"""Samples on their way to the model: raw sources -> capsule file (`build`, `store`) -> batches (`stream`).

Nothing here imports torch except the loader (`stream`) and the reader of legacy `.pt` files (`legacy`).
"""
