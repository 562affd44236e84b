"""What a user can get wrong."""

from __future__ import annotations

from dataset.corpora import DataError
from model.deeplab import NetworkError
from model.weights import WeightsError
from utils.checkpoint import CheckpointError
from utils.config import ConfigError
from utils.log import LogError

MISTAKES = (
    *(ConfigError, DataError, WeightsError, NetworkError, CheckpointError, LogError),
    *(FileExistsError, IsADirectoryError, NotADirectoryError, PermissionError),  # output where it cannot be
)
"""One clear line and exit code 2."""
