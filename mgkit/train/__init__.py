"""Training and fine-tuning: codec, language model, text encoder, reinforcement."""
