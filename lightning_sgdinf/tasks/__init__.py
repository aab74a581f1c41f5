"""The commands: Hydra at the rim, studies behind it."""
