"""Fits a map from logits to the probability of relevance on judged pairs, and measures it on others."""
