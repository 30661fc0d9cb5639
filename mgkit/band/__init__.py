"""The synthetic training data of the small model: composed, rendered and captioned music."""
