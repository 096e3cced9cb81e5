from setuptools import Extension, setup

import fastae

setup(
    ext_modules=[
        Extension(
            "streaming_c",
            ["streaming_c.c"],
            include_dirs=[fastae.get_include()],
            extra_compile_args=["-std=c99"],
        )
    ]
)
