"""migrator moves block-storage volumes between backends, safely."""

__version__ = "0.1.0"
