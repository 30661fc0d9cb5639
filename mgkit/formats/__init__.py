"""File formats: checkpoints of models in their published layouts, and audio."""
