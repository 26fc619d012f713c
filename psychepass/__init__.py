"""Contracts and plumbing that every stage shares; imports nothing of ours."""

import os

# Read when torch loads OpenMP, so it stands here, before any stage imports torch. By default threads that wait
# for each other spin; where another process wants the core, that made a training step 7 times slower (49 s for 7 s).
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
