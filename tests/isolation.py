"""A start for programs in another process that must get on without this project and what it is built with."""

WITHOUT_OUR_CODE = """
import sys


class Refusing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("pipeline", "stages", "benchmarks", "litgpt", "litdata", "lightning"):
            raise ImportError(f"{name} must not be needed here")


sys.meta_path.insert(0, Refusing())
try:
    import pipeline
except ImportError as error:
    assert "must not be needed" in str(error)
else:
    raise AssertionError("imports are not refused")
"""
