"""Benchmarks: what the methods are measured on, and how."""
