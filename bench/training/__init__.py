"""Trainers of what speculation needs: a draft for a target, and the head that predicts what the target will accept."""
