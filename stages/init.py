"""Copy the example configurations to where one works, so that the commands of the documentation run there as written."""

import shutil
from pathlib import Path

import pipeline

EXAMPLES = Path(pipeline.__file__).parent / "configs"


def run(*, folder: Path) -> str:
    """Writes `folder`/configs/*.yaml, the schema that editors complete them from, and the demo's teacher. A file that is there
    already stays as it is."""
    copied, kept = [], []
    for source in sorted([*EXAMPLES.rglob("*.yaml"), EXAMPLES / "schema.json", *EXAMPLES.rglob("*.safetensors")]):
        target = folder / "configs" / source.relative_to(EXAMPLES)
        if target.exists():
            kept.append(target)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
            copied.append(target)
    return f"{folder / 'configs'}: {len(copied)} examples copied, {len(kept)} were there and stay; begin with demo.yaml"
