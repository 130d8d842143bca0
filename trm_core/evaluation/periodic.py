"""How much is evaluated during training. Imports nothing, so that a diagnosis can ask without torch."""

PERIODIC_ROWS = 1000  # rows per evaluation; the one at the end takes all
