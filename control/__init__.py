"""The control plane: keeps resources, gathers evidence, decides, tells the sidecars."""
