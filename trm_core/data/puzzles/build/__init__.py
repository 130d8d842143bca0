"""Puzzles of every kind -> a puzzle folder (`trm build-puzzles`)."""
