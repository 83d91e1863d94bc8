"""The sweep wing: plans, gates, journal, rounds. Sees records only; imports no torch."""
