"""Forwards: a recorded step taken again, as it was or with other example weights."""
