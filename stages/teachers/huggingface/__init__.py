"""Hugging Face checkpoints as teachers: encoders, language models, images, images with texts."""
