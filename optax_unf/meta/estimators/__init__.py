"""Estimators of the gradient of the outer loss."""
