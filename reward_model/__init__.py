"""The Bradley-Terry reward model: packing, loss, training, scoring."""
