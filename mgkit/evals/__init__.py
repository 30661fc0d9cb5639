"""Measures models and audio: metrics, protocol, report."""
