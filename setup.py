"""Stops a build from a checkout without symbolic links; everything else about the package is in pyproject.toml."""

from pathlib import Path

LINKS = ("adapters", "engine", "schema")


def check_links(root: Path) -> None:
    """Exit with one line unless every link under ROOT/datatask leads to its package (in an sdist it is a folder)."""
    broken = [name for name in LINKS if not (root / "datatask" / name / "__init__.py").is_file()]
    if broken:
        names = ", ".join(f"datatask/{name}" for name in broken)
        raise SystemExit(
            f"datatask: this checkout has no symbolic links ({names}): "
            "run `git config core.symlinks true && git checkout -- datatask`, or install a wheel"
        )


if __name__ == "__main__":
    check_links(Path(__file__).resolve().parent)
    from setuptools import setup  # after the check, which then needs no build environment

    setup()
