"""Sudokus of 4, 6 and 9 digits: reading, solving, generating, symmetries."""
