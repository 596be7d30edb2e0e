"""The order of the commands in `pipeline --help`: the steps of an experiment first, then the other commands."""

import click

SECTIONS = {
    "Prepare the data": ("init", "synth", "doctor", "prepare"),
    "Stage one, the teacher": ("layers", "train-teacher", "plan", "cache-teacher"),
    "Stage two, the students": ("train-student", "evaluate", "report", "tune", "study"),
    "Use a trained network": ("predict", "export", "latency", "score"),
    "Check and manage stores": ("verify", "inspect", "cache"),
}


class Sections(click.Group):
    """Lists its commands under the titles of SECTIONS, and others last."""

    def list_commands(self, ctx):
        named = [name for names in SECTIONS.values() for name in names]
        return [*(name for name in named if name in self.commands), *(name for name in self.commands if name not in named)]

    def format_commands(self, ctx, formatter):
        names = self.list_commands(ctx)
        width = max(map(len, names))
        titles = {name: title for title, names in SECTIONS.items() for name in names}
        for title in dict.fromkeys(titles.get(name, "Other commands") for name in names):
            rows = [
                (name.ljust(width), self.commands[name].get_short_help_str(formatter.width - width - 6))
                for name in names
                if titles.get(name, "Other commands") == title
            ]
            with formatter.section(title):
                formatter.write_dl(rows)
