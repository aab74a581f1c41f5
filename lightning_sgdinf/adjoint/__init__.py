"""Recorded steps done again, forwards, and differentiated, backwards."""
