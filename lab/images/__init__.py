"""Stand-in images: which repository and tag holds which image, and the builder that makes them without Docker."""

from lab.images.build import REPOS, build

__all__ = ["REPOS", "build"]
