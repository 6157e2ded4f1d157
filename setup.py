"""The folders at the top of the repository are imported as genbo.cli, genbo.bilevel, ...; found, never listed."""

from setuptools import find_packages, setup

ROOMS = ("cli", "bilevel", "diffusion", "schedules", "rewards")
FOUND = [name for room in ROOMS for name in [room, *(f"{room}.{sub}" for sub in find_packages(room))]]

setup(
    packages=["genbo", *(f"genbo.{name}" for name in FOUND)],
    package_dir={"genbo": "api", **{f"genbo.{name}": name.replace(".", "/") for name in FOUND}},
)
