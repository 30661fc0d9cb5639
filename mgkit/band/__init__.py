"""Composes, renders and captions the music that the small model learns from."""
