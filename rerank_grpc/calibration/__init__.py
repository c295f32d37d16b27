"""A map from logits to the probability of relevance: its file, and how it is applied."""
