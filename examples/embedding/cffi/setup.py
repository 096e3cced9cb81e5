from setuptools import setup

setup(cffi_modules=["build_streaming.py:ffi"])
