"""PuzzleFS snapshotter: containers start before their images are downloaded.

The packages import one another in one direction only (``cli → daemon → {snapshots | mount | build} → chunkstore →
registry → format → errors``); ``pyproject.toml`` holds the rule for import-linter.
"""

__version__ = "0.1.0"
