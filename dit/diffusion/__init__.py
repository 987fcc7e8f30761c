"""Paths between data and noise, what the network predicts, when it is trained, how it is weighed."""
