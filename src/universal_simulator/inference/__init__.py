"""The inference room: rollouts and guards."""
