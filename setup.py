"""Packages of the wheel: pyproject.toml can find the library or map a folder into it, not both."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["RTDigitalTwinLib", "RTDigitalTwinLib.*"]), "RTDigitalTwinLib.Resources"],
    package_dir={"RTDigitalTwinLib.Resources": "Resources"},
    package_data={"RTDigitalTwinLib.Resources": ["**"]},
    exclude_package_data={"RTDigitalTwinLib.Resources": ["Screenshots/**"]},
)
