"""What a student does with a stored target: one file each, `class Loss` inside, contract in base.py."""
