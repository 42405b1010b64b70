"""Sites: what the machines are like, as data. Nothing that starts, submits or computes may enter."""
