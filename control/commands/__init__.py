"""The control plane's commands. Each module is imported only when its command is called."""
