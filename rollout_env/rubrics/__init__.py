"""Measures of one session: its diversity, CTRS fidelity, safety labels."""
