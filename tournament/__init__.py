"""Whatever compares sessions: judging, Swiss pairing, ratings, the held-out comparison."""
