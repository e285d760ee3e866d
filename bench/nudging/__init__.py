"""Nudging, by IFEval's checkers."""
