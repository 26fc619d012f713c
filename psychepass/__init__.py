"""Contracts and plumbing that every stage shares; imports nothing of ours."""
