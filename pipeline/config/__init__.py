"""One YAML per experiment -> frozen, checked values, or every fault in it at once.

    schema.py       the sections: types, ranges, defaults, a sentence on each key
    keys.py         the keys of a class, plug-ins' too, and faults in words
    reading.py      a YAML file, and `--set`
    loading.py      both together -> Config
    checks.py       checks of several sections together
    reference.py    docs/configuration.md and configs/schema.json

The sections are what the stages take and what dvc.yaml lists.
"""

from pipeline.config.loading import INJECTED, SECTIONS, Config, load, plugin
from pipeline.config.reading import read_yaml
from pipeline.config.schema import (
    LABEL_TERMS,
    MAIN,
    TERM_WORDS,
    Evaluate,
    GradientShare,
    Photometric,
    Plugin,
    Prepare,
    Student,
    Teacher,
    Term,
    Training,
    Views,
    term_name,
    weight_in_words,
)

__all__ = [
    "INJECTED",
    "SECTIONS",
    "LABEL_TERMS",
    "MAIN",
    "TERM_WORDS",
    "Config",
    "Evaluate",
    "GradientShare",
    "Photometric",
    "Plugin",
    "Prepare",
    "Student",
    "Teacher",
    "Term",
    "Training",
    "Views",
    "load",
    "plugin",
    "read_yaml",
    "term_name",
    "weight_in_words",
]
