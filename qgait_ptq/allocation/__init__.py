"""Which layer gets how many bits: what each width damages, what it costs, and which to take."""
