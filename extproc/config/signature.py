"""The signature of a folder of YAML. It differs after an edit."""

from pathlib import Path

from extproc.config.reading import yaml_files
from extproc.routing.gain_file import FITTED_FILES

# Name, time of change, inode and size of each file. `stat` follows the symbolic links that Kubernetes swaps under a
# ConfigMap. inotify does not see those swaps on every volume.
Signature = tuple[tuple[str, int, int, int], ...]


def signature(folder: Path) -> Signature:
    """Differs after any YAML file or the centroids in `folder` are edited, added, removed or swapped."""
    files = []
    for path in (*yaml_files(folder), *(folder / name for name in FITTED_FILES)):
        try:
            stat = path.stat()
        except OSError:
            continue  # it is not there now: if it comes back, the next look sees it
        files.append((path.name, stat.st_mtime_ns, stat.st_ino, stat.st_size))
    return tuple(files)
