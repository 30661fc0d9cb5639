"""Training the model that ships with the repository: band, codec, language model, measures."""
