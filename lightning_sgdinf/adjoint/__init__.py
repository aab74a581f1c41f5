"""Backwards: a taken step pulled back."""
