"""Blocks: tensors in, tensors out. Imports torch and einops and nothing else (`layers.testing` adds pytest and hypothesis)."""
