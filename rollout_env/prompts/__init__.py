"""The prompts, one text file each; what identifies a prompt is a hash of its content."""

from pathlib import Path

from psychepass.errors import UserError

FOLDER = Path(__file__).parent


def read_prompt(file_name: str) -> str:
    """The text of a prompt file, without the final newline."""
    path = FOLDER / file_name
    if not path.is_file():
        known = sorted(p.name for p in FOLDER.glob(f"{file_name.partition('_')[0]}_*"))  # those of its kind
        raise UserError(f"{path}: no such prompt; there are {', '.join(known)}")
    return path.read_text(encoding="utf-8").removesuffix("\n")
