"""GRPO on verl: configuration, reward, export."""
