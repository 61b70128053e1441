"""Others' trained weights: `load` finds and loads them, `containers` unpacks files, `preprocess` prepares pictures."""
