"""Readers of the data of tasks."""
