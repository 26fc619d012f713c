"""Platform, engine and rollout that let verl run without a GPU."""
