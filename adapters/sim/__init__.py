"""Simulation: models of pipelines stepped in virtual time, their results and reports."""
