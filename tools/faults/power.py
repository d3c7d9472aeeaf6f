"""What a disk may hold after a power cut: a trace of preload.c replayed, without what was not synchronised.

Content of a file is safe once the file was synchronised, a name once its folder was. Anything else may or may not be on
the disk after a cut. Three outcomes are simulated:

  lost   only what is safe
  empty  all names, no content: what ext4 leaves of a file that was renamed without fsync
  mixed  names up to a random moment; of each file the old content, the new content, or the beginning that was safe and
         unchanged, followed by nothing, a part of the new content or zeros
"""
import os
from pathlib import Path

KINDS = ("lost", "empty", "mixed")


class File:
    """Content as it is, and as it is safe."""
    def __init__(self, content=b""):
        self.now, self.safe = bytearray(content), bytes(content)

    def write(self, offset, data):
        if len(self.now) < offset:
            self.now.extend(bytes(offset - len(self.now)))
        self.now[offset:offset + len(data)] = data

    def truncate(self, length):
        del self.now[length:]
        self.now.extend(bytes(length - len(self.now)))

    def after(self, kind, random):
        if kind == "lost" or self.now == self.safe:
            return self.safe
        if kind == "empty":
            return self.safe if self.safe else b""
        # What was safe and did not change stays.
        kept = len(os.path.commonprefix([self.safe, bytes(self.now)]))
        zeros = self.now[:kept] + bytes(len(self.now) - kept)
        beginning = self.now[:random.randint(kept, len(self.now))]
        return bytes(random.choice([self.safe, self.now, beginning, zeros]))


def put(names, name, entry):
    if entry is None:
        names.pop(name, None)
    else:
        names[name] = entry


class Folder:
    def __init__(self):
        self.now, self.safe = {}, {}


class Disk:
    """The folder `root`, all of it safe at first."""
    def __init__(self, root):
        self.root, self.inodes, self.first = Path(root), {}, {}
        self.top = self._load(self.root)
        self.names = []  # changes of names in their order, each a list of (folder, name, new entry or None)
        self.forced = 0  # so many of them are safe

    def _load(self, path):
        if not path.is_dir():
            return self.inodes.setdefault(path.stat().st_ino, File(path.read_bytes()))
        folder = Folder()
        folder.now = {entry.name: self._load(entry) for entry in path.iterdir()}
        folder.safe = dict(folder.now)
        self.first[id(folder)] = dict(folder.now)
        return folder

    def _at(self, path):
        found = self.top
        for part in Path(path).relative_to(self.root).parts:
            found = found.now[part]
        return found

    def _names(self, *changes):
        """Each a path and what it names from now on."""
        changes = [(self._at(Path(path).parent), Path(path).name, entry) for path, entry in changes]
        for folder, name, entry in changes:
            put(folder.now, name, entry)
        self.names.append(changes)

    def apply(self, change):
        kind, *rest = change
        if kind == "M":
            self._names((rest[0], Folder()))
        elif kind == "C":
            self.inodes[rest[0]] = File()
            self._names((rest[1], self.inodes[rest[0]]))
        elif kind == "W":
            self.inodes[rest[0]].write(rest[1], rest[2])
        elif kind == "T":
            self.inodes[rest[0]].truncate(rest[1])
        elif kind == "R":
            self._names((rest[0], None), (rest[1], self._at(rest[0])))
        elif kind == "U":
            self._names((rest[0], None))
        elif kind == "F":
            file = self.inodes[rest[0]]
            file.safe = bytes(file.now)
        elif kind == "D":
            folder = self._at(rest[0])
            folder.safe = dict(folder.now)
            of_it = [i + 1 for i, changes in enumerate(self.names) if any(c[0] is folder for c in changes)]
            self.forced = max([self.forced, *of_it])

    def cut(self, target, kind, random):
        """Writes what is left into the folder `target`, which is empty."""
        if kind == "mixed":
            last = random.randint(self.forced, len(self.names))
            entries = lambda folder: self._names_after(folder, last)
        else:
            entries = lambda folder: folder.safe if kind == "lost" else folder.now
        self._write(self.top, Path(target), entries, kind, random)

    def _names_after(self, folder, last):
        found = dict(self.first.get(id(folder), {}))
        for changes in self.names[:last]:
            for where, name, entry in changes:
                if where is folder:
                    put(found, name, entry)
        return found

    def _write(self, entry, path, entries, kind, random):
        if isinstance(entry, File):
            path.write_bytes(entry.after(kind, random))
            return
        path.mkdir(exist_ok=True)
        for name, inner in entries(entry).items():
            self._write(inner, path / name, entries, kind, random)


def read(trace):
    """The changes of a trace; the last one may be torn."""
    data, at, changes = Path(trace).read_bytes(), 0, []
    while (end := data.find(b"\n", at)) >= 0:
        kind, _, rest = data[at:end].decode().partition(" ")
        at = end + 1
        if kind == "W":
            inode, offset, length = (int(word) for word in rest.split())
            if at + length > len(data):
                break
            changes.append(("W", inode, offset, data[at:at + length]))
            at += length
        elif kind == "C":
            inode, path = rest.split(" ", 1)
            changes.append(("C", int(inode), path))
        elif kind == "T":
            inode, length = rest.split()
            changes.append(("T", int(inode), int(length)))
        elif kind == "F":
            changes.append(("F", int(rest)))
        elif kind == "R":
            changes.append(("R", *rest.split("\t")))
        else:
            changes.append((kind, rest))
    return changes
