from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup

import fastae

# An installed fastae is found without include_path; one that is installed for editing is not.
setup(
    ext_modules=cythonize(
        [Extension("streaming_cython", ["streaming_cython.pyx"])],
        include_path=[str(Path(fastae.__file__).parents[1])],
    )
)
