"""What is stored of a teacher: one file each, `class Target` inside, contract in base.py."""
