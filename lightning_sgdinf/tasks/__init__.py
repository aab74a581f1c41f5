"""The ``sgdinf`` command: Hydra at the rim, plain objects inside."""
