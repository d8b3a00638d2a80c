"""A run on disk: its folder, checkpoints, TensorBoard events and provenance."""
