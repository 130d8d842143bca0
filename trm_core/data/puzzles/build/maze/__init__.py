"""Mazes with one start and one goal: reading, checking, generating, symmetries."""
