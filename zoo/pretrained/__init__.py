"""Weights that somebody has trained: `load` finds and loads them, `preprocess` prepares pictures as they expect them."""
