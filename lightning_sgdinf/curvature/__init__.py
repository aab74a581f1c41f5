"""Curvature of the training loss at one state: products with it, and solvers."""
