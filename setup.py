"""Adds conf/ to what is installed, as lmlab/conf. All else about the package is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class BuildWithConf(build_py):
    """Copies conf/ beside the library, where an installed lab reads it."""

    def run(self):
        super().run()
        if not self.editable_mode:  # which reads conf/ in the checkout itself
            shutil.copytree("conf", Path(self.build_lib, "lmlab/conf"), dirs_exist_ok=True)


setup(cmdclass={"build_py": BuildWithConf})
