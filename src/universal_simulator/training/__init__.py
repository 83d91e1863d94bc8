"""The training room: losses, optimisation, the resumable loop."""
