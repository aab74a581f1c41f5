"""Configurations of the ``sgdinf`` command; ``pkg://lightning_sgdinf.conf`` on a Hydra search path finds them."""
