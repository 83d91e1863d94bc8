"""The model room: the contract, its members, canonical frames."""
