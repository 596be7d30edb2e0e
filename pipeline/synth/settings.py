"""What decides the content of the road set's frames, and the names that follow. Reading needs no more than this."""

import hashlib
import json
from dataclasses import dataclass

VERSION = 1  # bump when the same settings would give other scenes or pictures
JPEG_QUALITY = 90
CLIP_FRAMES, FRAME_STEP = 100, 30  # frames a clip folder, and between frame numbers


@dataclass(frozen=True, kw_only=True)
class Settings:
    size: tuple[int, int]
    seed: int
    difficulty: float

    @property
    def driver(self) -> str:
        """The folder of the frames, e.g. driver_roads_s0_1a2b3c4d: other content has another name."""
        record = json.dumps([VERSION, *self.size, float(self.difficulty), JPEG_QUALITY])
        return f"driver_roads_s{self.seed}_{hashlib.blake2b(record.encode(), digest_size=4).hexdigest()}"

    def image_id(self, split: str, index: int) -> str:
        return f"{self.driver}/{split}_{index // CLIP_FRAMES:04d}.MP4/{index % CLIP_FRAMES * FRAME_STEP:05d}"
