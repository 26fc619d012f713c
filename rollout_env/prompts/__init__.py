"""The prompts, one text file each; what identifies a prompt is a hash of its content."""

from pathlib import Path

from psychepass.errors import UserError

FOLDER = Path(__file__).parent


def read_prompt(file_name: str) -> str:
    """The text of a prompt file, without the final newline."""
    path = FOLDER / file_name
    if not path.is_file():
        raise UserError(f"{path}: no such prompt; there are {', '.join(sorted(p.name for p in FOLDER.glob('*.*')))}")
    return path.read_text(encoding="utf-8").removesuffix("\n")
