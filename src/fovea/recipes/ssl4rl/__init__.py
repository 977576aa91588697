"""SSL4RL in miniature: the study of self-supervised tasks."""
