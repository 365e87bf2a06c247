"""Vocabularies, texts and token sequences, for training and for measuring."""
