"""From logits to sequences: decoding and sampling."""
