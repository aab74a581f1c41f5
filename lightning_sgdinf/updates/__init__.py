"""A trained run and a selection in, another model out."""
