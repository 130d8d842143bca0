"""Puzzles as token sequences, in the folder layout of the TRM and HRM dataset builders."""
