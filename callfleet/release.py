"""The release file: which image, by digest, stands behind each name that a site uses.

Its form is final: a site's `<site>.release.yml` maps an image name to the repository it is pulled from, the tag people
know it by, the digest that is really pulled, and where the pin came from.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator

from callfleet.document import Document, Strict, Text, read, text, validate, version_problem
from callfleet.errors import SiteError

FORMAT = 1

ImageName = Annotated[
    str, text(re.compile(r"[a-z0-9]+([._-]+[a-z0-9]+)*").fullmatch, "an image name such as core-worker")
]
Repository = Annotated[
    str,
    text(
        re.compile(r"([a-z0-9.-]+(:[0-9]+)?/)?[a-z0-9]+([._-]+[a-z0-9]+)*(/[a-z0-9]+([._-]+[a-z0-9]+)*)*").fullmatch,
        "a repository in lower case, without tag or digest, such as team/core-worker",
    ),
]
Tag = Annotated[
    str,
    text(re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}").fullmatch, 'a tag such as "2026.11.20"'),
]
Digest = Annotated[
    str,
    text(
        re.compile(r"sha256:[0-9a-f]{64}").fullmatch,
        "sha256: and 64 hexadecimal digits in lower case",
        "`callfleet release pin <site> <image> <tag>` finds and records it.",
    ),
]


class Pin(Strict):
    """One image. Without a digest it is unpinned: what a tag means can change, so only lab and local sites may use it.

    `built` and `pinned_at` are times in ISO 8601, `commit` and `pinned_by` free text; none of them changes what runs.
    """

    repository: Repository | None = None
    tag: Tag | None = None
    digest: Digest | None = None
    built: Text | None = None
    commit: Text | None = None
    pinned_by: Text | None = None
    pinned_at: Text | None = None

    @property
    def pinned(self) -> bool:
        """Whether it is named by content."""
        return self.digest is not None


class Release(Strict):
    """The pins of a site under one name."""

    callfleet_release: Literal[1]
    release: Text
    images: Annotated[dict[ImageName, Pin], BeforeValidator(lambda value: {} if value is None else value)]

    def reference(self, image: str, registry: str | None) -> str:
        """What to give to `docker pull`: `registry/repository@sha256:…`, or `…:tag` where there is no digest.

        A repository that begins with a registry's own host name (a dot or a port in its first part) is used as it
        stands; any other is below `registry`. KeyError for an image that is not in the release.
        """
        pin = self.images[image]
        repository = pin.repository or image
        if registry and not _has_registry(repository):
            repository = f"{registry}/{repository}"
        return f"{repository}@{pin.digest}" if pin.digest else f"{repository}:{pin.tag}"


def _has_registry(repository: str) -> bool:
    first, slash, _ = repository.partition("/")
    return bool(slash) and ("." in first or ":" in first or first == "localhost")


def read_release(file: Path) -> tuple[Release | None, Document]:
    """The release, or None with what is wrong in the document's `problems`."""
    document = read(file)
    if problem := version_problem(document, "callfleet_release", FORMAT):
        document.problems.append(problem)
    release = validate(document, Release)
    if release:
        document.problems.extend(
            document.problem(("images", name), "a digest or at least a tag", got="neither")
            for name, pin in release.images.items()
            if pin.digest is None and pin.tag is None
        )
    return release, document


def load_release(file: Path) -> Release:
    """The release of a site. SiteError when the file is missing or wrong."""
    release, document = read_release(file)
    if release is None or document.problems:
        raise SiteError(document.problems)
    return release
