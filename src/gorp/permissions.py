"""Who may read what gorp writes.

What is written inside a folder can be read by those who can read the folder, and by nobody else: files and folders get
at most its permissions. A workspace is made for its owner alone, and so stays private; `chmod -R g+rX` of its folder
shares it, and what is written later follows.
"""

import os
from pathlib import Path


def file_mode(folder: Path) -> int:
    """Return the permissions of a new file in `folder`, before the umask: at most those of the folder."""
    return 0o600 | (0o066 & folder.stat().st_mode)


def private_mode(path: Path) -> int:
    """Return the permissions of a page with somebody's data: those of the file it replaces, else only its owner's."""
    return path.stat().st_mode & 0o777 if path.is_file() else 0o600


def make_folder(folder: Path) -> None:
    """Make a folder and its missing parents, each with at most the permissions of the folder that it is in."""
    if not folder.is_dir():
        make_folder(folder.parent)
        try:
            os.mkdir(folder, 0o700 | (0o077 & folder.parent.stat().st_mode))
        except FileExistsError:
            if not folder.is_dir():
                raise


def restrict(folder: Path) -> None:
    """Take from what is below `folder`, and from itself, the permissions that the folder around it does not have."""
    allowed = folder.parent.stat().st_mode
    for path in (folder, *folder.rglob("*")):
        mode = path.lstat().st_mode
        if mode & ~allowed & 0o777 and not path.is_symlink():
            path.chmod(mode & 0o7777 & (allowed | 0o7000))  # a set-group-ID bit stays
