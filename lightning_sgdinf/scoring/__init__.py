"""The loop over the recorded steps, and the jobs that give scores."""
