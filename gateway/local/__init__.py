"""The model worker: another process that holds one local model and advances many answers together."""
