"""Networks, teachers and students alike: one file each, `class Model` inside, contract in base.py."""
