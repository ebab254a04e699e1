"""The folder that `sam-med2d serve --studies` names: images that tools ask for by name, and labels that they hand in.

    FOLDER/ct.nii.gz                    the image "ct"; pictures too
    FOLDER/series/*.dcm                 one DICOM series a folder; its name is its SeriesInstanceUID
    FOLDER/labels/final/ct.nii.gz       a label of it, with the tag "final"; ct_2.nii.gz is a later one

Nothing outside of it is read or written.
"""

import hashlib
import re
import shutil
import threading
from collections import OrderedDict
from pathlib import Path
from typing import Any

from sam_med2d.app.opening import Opener
from sam_med2d.app.store import Refused
from sam_med2d.errors import DataError, UsageError
from sam_med2d.image_files import ENDINGS
from sam_med2d.inference.uploads import VOLUMES, Scan
from sam_med2d.outputs import below
from sam_med2d.ownership import check_writable
from sam_med2d.serve.monai import check_scan
from segment_anything.files import replacing

LABELS, FINAL = "labels", "final"
TAG = re.compile(r"\w{1,40}")
KEPT = 4  # images that stay open


class Studies:
    """folder: None where the server was started without one; then there are no images."""

    def __init__(self, folder: Path | None, opener: Opener, temporary: Path, most_bytes: int) -> None:
        """temporary: for images that are opened, of at most `most_bytes` each. Raises UsageError: no such folder."""
        if folder is not None and not folder.is_dir():
            raise UsageError(f"--studies {folder}: is no folder; make it, or leave the flag out")
        if folder is not None:
            check_writable(folder)
        self._folder = folder.resolve() if folder else None
        self._opener, self._temporary, self._most_bytes = opener, temporary, most_bytes
        self._open: OrderedDict[str, Scan] = OrderedDict()
        self._uids: dict[tuple[str, float], str] = {}
        self._lock = threading.Lock()

    def images(self) -> dict[str, Path]:
        """{name: file or folder of a DICOM series}"""
        if self._folder is None:
            return {}
        found = {}
        for path in sorted(self._folder.iterdir()):
            if path.name.startswith(".") or path.name == LABELS or not path.resolve().is_relative_to(self._folder):
                continue
            if path.is_dir():
                if uid := self._uid_of(path):
                    found[uid] = path
            elif stem := _stem(path.name):
                found[stem] = path
        return found

    def _uid_of(self, folder: Path) -> str:
        """Of the series in a folder; nothing where its first file is no DICOM."""
        from sam_med2d.volumes.dicom import read_header

        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
        if not files or not files[0].resolve().is_relative_to(self._folder or folder):
            return ""
        key = (str(files[0]), files[0].stat().st_mtime)
        if key not in self._uids:
            try:
                header = read_header(str(files[0]), ["SeriesInstanceUID"])
            except DataError:
                header = None
            self._uids[key] = str(header.get("SeriesInstanceUID", "")) if header is not None else ""
        return self._uids[key]

    def path_of(self, name: str) -> Path:
        """Raises Refused."""
        found = self.images().get(name)
        if found is None:
            where = (
                "among the images of --studies" if self._folder else "here: the server was started without --studies"
            )
            raise Refused(f"there is no image {name!r:.80} {where}", 404)
        return found

    def scan(self, name: str) -> Scan:
        """An image, opened in a process of its own. Raises DataError, Refused."""
        path = self.path_of(name)
        files = [path] if path.is_file() else sorted(one for one in path.iterdir() if one.is_file())
        stamps = [(one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in files]
        key = hashlib.blake2b(repr((str(path), stamps)).encode(), digest_size=16).hexdigest()
        with self._lock:
            if key not in self._open:
                place = self._temporary / key
                shutil.rmtree(place, ignore_errors=True)
                place.mkdir(mode=0o700)
                try:
                    scan = self._opener.open(path, place, self._most_bytes)
                    check_scan(scan)
                except BaseException:
                    shutil.rmtree(place, ignore_errors=True)
                    raise
                self._open[key] = scan
            self._open.move_to_end(key)
            while len(self._open) > KEPT:
                old, _ = self._open.popitem(last=False)  # whoever still looks at it has it mapped
                shutil.rmtree(self._temporary / old, ignore_errors=True)
            return self._open[key]

    def add(self, name: str, file: str, data: bytes) -> str:
        """A new image -> its name. Raises DataError, Refused: there is one of that name."""
        folder, ending = self._here(), _ending(file)
        if not ending:
            raise DataError(f"{file!r:.60}: send a volume or a picture ({', '.join((*VOLUMES, *ENDINGS))})")
        name = below(name or file[: -len(ending)]).rpartition("/")[2]
        if name in self.images():
            raise Refused(f"there is an image {name} already, and no image is overwritten", 409)
        with replacing(folder / f"{name}{ending}") as temporary:
            temporary.write_bytes(data)
        return name

    def _here(self) -> Path:
        if self._folder is None:
            raise Refused("nothing is stored here: start the server with --studies FOLDER", 403)
        return self._folder

    # ---------------------------------------------------------------- labels

    def add_label(self, name: str, tag: str, file: str, data: bytes) -> str:
        """A label of an image, beside earlier ones -> what it is called. Raises DataError, Refused."""
        self.path_of(name)
        ending = _ending(file)
        if ending not in VOLUMES:
            raise DataError(f"{file!r:.60}: a label is a volume ({', '.join(VOLUMES)})")
        folder = self._tagged(tag)
        folder.mkdir(parents=True, exist_ok=True)
        with self._lock:
            taken = {stem for path in folder.iterdir() if (stem := _stem(path.name))}
            names = (name if number == 1 else f"{name}_{number}" for number in range(1, len(taken) + 2))
            label = next(one for one in names if one not in taken)
            with replacing(folder / f"{label}{ending}") as temporary:
                temporary.write_bytes(data)
        return label

    def label(self, name: str, tag: str) -> Path:
        """The file of a label. Raises Refused."""
        folder = self._tagged(tag)
        found = [path for path in folder.glob("*") if name and _stem(path.name) == name]
        if not found or not found[0].resolve().is_relative_to(self._here()):
            raise Refused(f"there is no label {name!r:.80} with the tag {tag}", 404)
        return found[0]

    def _tagged(self, tag: str) -> Path:
        if not TAG.fullmatch(tag):
            raise DataError(f"a tag has letters, digits and _, at most 40, not {tag!r:.60}")
        return self._here() / LABELS / tag

    # ---------------------------------------------------------------- what there is

    def labels(self) -> dict[str, dict[str, str]]:
        """{image: {tag: the name of its latest label}}"""
        found: dict[str, dict[str, tuple[int, str]]] = {}
        images = self.images()
        folder = self._folder / LABELS if self._folder else None
        for path in sorted(folder.glob("*/*")) if folder else []:
            stem = _stem(path.name)
            base, _, number = stem.rpartition("_")
            image, turn = (base, int(number)) if base in images and number.isdecimal() else (stem, 1)
            if image in images:
                tags = found.setdefault(image, {})
                tags[path.parent.name] = max(tags.get(path.parent.name, (0, "")), (turn, stem))
        return {image: {tag: name for tag, (_, name) in tags.items()} for image, tags in found.items()}

    def status(self) -> dict[str, Any]:
        labels, counts = self.labels(), dict[str, int]()
        for tags in labels.values():
            for tag in tags:
                counts[tag] = counts.get(tag, 0) + 1
        completed = sum(FINAL in tags for tags in labels.values())
        return {"total": len(self.images()), "completed": completed, "label_tags": counts}

    def everything(self) -> dict[str, Any]:
        labels = self.labels()
        objects = {
            name: {
                "image": {"ext": _ending(path.name) if path.is_file() else "", "info": {"name": path.name}},
                "labels": {
                    tag: {"ext": _ending(self.label(label, tag).name), "info": {"name": label}}
                    for tag, label in labels.get(name, {}).items()
                },
            }
            for name, path in self.images().items()
        }
        return {"name": "studies", "description": "the images of --studies", "objects": objects}


def _ending(name: str) -> str:
    """Of an image by its name; nothing where it is none."""
    return next((ending for ending in (".nii.gz", *VOLUMES, *ENDINGS) if name.lower().endswith(ending)), "")


def _stem(name: str) -> str:
    """The name without that ending; nothing where it is none of an image."""
    return name[: -len(ending)] if (ending := _ending(name)) else ""
