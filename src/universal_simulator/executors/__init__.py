"""Where runs run: behind the contract of `sweep.executor`."""
