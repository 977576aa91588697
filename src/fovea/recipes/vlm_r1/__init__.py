"""VLM-R1's recipes for GPUs, and its studies in miniature on the embedded model."""
