"""Training the model that ships with the repository: the band that plays, the codec, the language model, the measures."""
