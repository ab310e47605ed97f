"""Maps the top-level folders to `tersor.<folder>`; everything else is in pyproject.toml.

The packages are computed so that a new sub-package can never be missing from a wheel while an
editable install still finds it.
"""

from setuptools import find_packages, setup

FOLDERS = ("bundle", "cli", "converters", "kernels", "models", "protos", "runtime")

packages = [
    f"tersor.{name}"
    for folder in FOLDERS
    for name in (folder, *(f"{folder}.{sub}" for sub in find_packages(folder)))
]

setup(
    packages=packages,
    package_dir={f"tersor.{folder}": folder for folder in FOLDERS},
    package_data={name: ["py.typed", "*.pyi", "*.proto", "*.toml", "*.json"] for name in packages},
)
