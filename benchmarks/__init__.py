"""Measurements: compile time, throughput, memory."""
