"""Layers whose map is a product of two weights of the model: LoRA pairs, attention logits."""
