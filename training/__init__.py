"""What both trained models share: the rendered text, preference pairs, RL prompts."""
