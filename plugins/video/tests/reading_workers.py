"""A data set that opens a video in a DataLoader's worker; in a module of its own, so that spawned workers find it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mim_video.readers import open_reader
from numbered_videos import number_of
from torch.utils.data import DataLoader


@dataclass(frozen=True)
class Numbers:
    path: Path
    reader: str
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, place: int) -> int:
        with open_reader(self.path, self.reader) as reader:
            return number_of(reader.frames_at([self.indices[place]])[0].numpy())


def read_in_workers(numbers: Numbers, start: str) -> list[int]:
    """The numbers that frames show, read by a worker."""
    loader = DataLoader(numbers, batch_size=1, num_workers=1, multiprocessing_context=start, timeout=60)  # type: ignore[arg-type]
    return [int(batch) for batch in loader]


def main(arguments: Sequence[str]) -> None:
    """Print them, with forked workers; a reader is used in this process first."""
    path, name = Path(arguments[0]), arguments[1]
    with open_reader(path, name) as reader:
        reader.frames_at([0])
    print(*read_in_workers(Numbers(path, name, (59, 0, 7, 30)), "fork"))
