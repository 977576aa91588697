"""What may change a picture while the policy explores: noise, schedules. Pure functions, no torch.

Not here: who shows a changed picture to whom (`fovea.training.variants`, the rollout).
"""
