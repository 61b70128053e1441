"""Others' trained weights: `load` finds and loads them, `containers` unpacks files, `huggingface` reads configurations,
`preprocess` prepares pictures."""
