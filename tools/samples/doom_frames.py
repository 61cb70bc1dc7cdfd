"""Makes the aligned pictures that mim-multimodal ships: ViZDoom's views of Freedoom maps as colour, depth and classes.

A camera is put near an object of the map, in its sight, and looks towards it (three quarters) or anywhere. The groups
of objects take turns, so that rare ones are seen too; for the last fifth of a map's pictures its monsters are dead.
Weapon, status bar, cross-hair, messages and flashes are off. Views are left out that are dark, that face a wall (depth
hardly varies, or much of it is near), that resemble one kept from the same map, that show an unknown object, or whose
depth is plainly wrong (steps without a texture get the largest). Two engines run in step, of which one paints the sky
in one colour: that tells the sky exactly, and checks determinism. Maps are either for training or for the test.

A view is rendered at 256 x 192 (90 degrees), its middle 192 x 192 kept (74 degrees) and reduced by three: colour by
the mean, depth and class by the middle pixel. Depth: 2.5 times the engine's value, which saturates at 102; so 0 is
near, 255 is about 755 map units (along the camera's axis) or further, and the sky. A step is about 3 units; a person
is 56 high.

Run: python -m venv doom && doom/bin/pip install vizdoom==1.3.2 numpy pillow av
     doom/bin/python tools/samples/doom_frames.py [FOLDER]   (eight minutes)
Licences: Freedoom's (BSD, three clauses) for all art; ViZDoom MIT. LICENSE and CREDITS lie beside the sample.
"""

from __future__ import annotations

import csv
import struct
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import vizdoom
from PIL import Image

HERE = Path(__file__).parents[2]
TRAIN = "E1M2 E1M7 E1M9 E2M3 E2M6 E2M9 E3M3 E3M4 E4M3 E4M9 MAP01 MAP04 MAP05 MAP07 MAP10 MAP11 MAP15 MAP21 MAP23 MAP28"
TEST = "E1M6 E2M7 E3M9 E4M5 MAP09 MAP16 MAP20 MAP26"
FRAMES = {"train": 48, "test": 30}
"""Pictures per map."""
CLIPS, CLIP_FRAMES, TICS = 3, 16, 2
"""Clips per map, frames per clip, and the engine's tics (35 a second) per frame."""
WIDTH, HEIGHT, SIZE = 256, 192, 64
FAR = 102
"""Depth at which walls and sprites saturate in the engine; floors go on and are cut here. The sky has it too."""
SKY = (255, 0, 255)
SEED = 7

GROUPS = {
    "monster": "Arachnotron Archvile BaronOfHell Cacodemon ChaingunGuy Cyberdemon Demon DoomImp Fatso HellKnight "
    "LostSoul PainElemental Revenant ShotgunGuy Spectre SpiderMastermind Zombieman WolfensteinSS",
    "corpse": "DeadMarine GibbedMarine GibbedMarineExtra DeadZombieMan DeadDoomImp DeadDemon DeadShotgunGuy "
    "DeadCacodemon DeadLostSoul",
    "gore": "Gibs ColonGibs SmallBloodPool BrainStem HangNoGuts HangBNoBrain HangTLookingDown HangTLookingUp "
    "HangTSkull HangTNoBrain Meat2 Meat3 Meat4 Meat5 NonsolidMeat2 NonsolidMeat3 NonsolidMeat4 NonsolidMeat5 "
    "BloodyTwitch NonsolidTwitch LiveStick DeadStick HeadsOnAStick HeadOnAStick HeadCandles "
    "CommanderKeen DeadCommanderKeen",
    "health or armour": "HealthBonus Stimpack Medikit Soulsphere Megasphere Berserk ArmorBonus GreenArmor BlueArmor",
    "ammunition": "Clip ClipBox Shell ShellBox RocketAmmo RocketBox Cell CellPack Backpack",
    "weapon": "Chainsaw Shotgun SuperShotgun Chaingun RocketLauncher PlasmaRifle BFG9000",
    "key or power": "BlueCard RedCard YellowCard BlueSkull RedSkull YellowSkull RadSuit BlurSphere Allmap Infrared "
    "InvulnerabilitySphere",
    "barrel": "ExplosiveBarrel",
    "light": "Column TechLamp TechLamp2 Candlestick Candelabra RedTorch GreenTorch BlueTorch ShortRedTorch "
    "ShortGreenTorch ShortBlueTorch BurningBarrel",
    "plant or pillar": "BigTree TorchTree Stalagtite TechPillar TallRedColumn ShortRedColumn TallGreenColumn "
    "ShortGreenColumn HeartColumn SkullColumn FloatingSkull EvilEye BossBrain",
}
"""Class -> ViZDoom's names of its objects. Column is a floor lamp, Stalagtite a stump, TorchTree a dead tree."""
SURFACES = ("wall", "floor", "ceiling", "sky")
CLASSES = (*SURFACES, *GROUPS)
GROUP_OF = {name: group for group, names in GROUPS.items() for name in names.split()}
POWERS = ("InvulnerabilitySphere", "RadSuit", "Infrared", "BlurSphere")
"""What would tint all that is seen after it was picked up."""
LEAST = 16
"""An object group is a picture's label only with this many of its 4,096 pixels."""


@dataclass
class View:
    """One moment: colour [64, 64, 3], depth [64, 64] and, for pictures, classes [64, 64]; all uint8."""

    rgb: Any
    depth: Any
    classes: Any = None
    unknown: tuple[str, ...] = ()


def group_of(name: str) -> str | None:
    """The class of an object; None when no list has it. The engine calls a killed monster Dead and its name."""
    if name in GROUP_OF:
        return GROUP_OF[name]
    return "corpse" if name.startswith("Dead") and GROUP_OF.get(name[4:]) == "monster" else None


def lumps(path: Path) -> dict[str, bytes]:
    """The named pieces of a WAD file; of equal names the first."""
    data = path.read_bytes()
    count, offset = struct.unpack("<ii", data[4:12])
    pieces: dict[str, bytes] = {}
    for row in range(offset, offset + 16 * count, 16):
        start, size, name = struct.unpack("<ii8s", data[row : row + 16])
        pieces.setdefault(name.rstrip(b"\0").decode(), data[start : start + size])
    return pieces


def sky_patches(pieces: dict[str, bytes]) -> set[str]:
    """The pictures of which textures are made whose name has SKY in it."""
    names, patches = pieces["PNAMES"], set()
    for table in (pieces[name] for name in ("TEXTURE1", "TEXTURE2") if name in pieces):
        count = struct.unpack("<i", table[:4])[0]
        for at in struct.unpack(f"<{count}i", table[4 : 4 + 4 * count]):
            if b"SKY" not in table[at : at + 8]:
                continue
            for entry in range(struct.unpack("<h", table[at + 20 : at + 22])[0]):
                number = struct.unpack("<h", table[at + 26 + 10 * entry : at + 28 + 10 * entry])[0]
                patches.add(names[4 + 8 * number : 12 + 8 * number].rstrip(b"\0").decode().upper())
    return patches


def flat_skies(wad: Path, target: Path) -> Path:
    """A WAD file that replaces every sky of another by the colour SKY."""
    pieces = lumps(wad)
    palette = np.frombuffer(pieces["PLAYPAL"][:768], np.uint8).reshape(256, 3)
    index = int(np.flatnonzero((palette == SKY).all(1))[0])
    body, rows = b"", []
    for name in ("PP_START", *sorted(sky_patches(pieces)), "PP_END"):
        piece = b""
        if name in pieces:
            width, height = struct.unpack("<HH", pieces[name][:4])
            column = bytes([0, height, index, *([index] * height), index, 255])
            start = 8 + 4 * width
            piece = struct.pack("<HHhh", width, height, 0, 0) + struct.pack(f"<{width}i", *([start] * width)) + column
        rows.append(struct.pack("<ii8s", 12 + len(body), len(piece), name.encode()))
        body += piece
    target.write_bytes(b"PWAD" + struct.pack("<ii", len(rows), 12 + len(body)) + body + b"".join(rows))
    return target


def engine(level: str, skies: Path | None = None) -> Any:
    """ViZDoom on one map, with nothing drawn over the view."""
    game = vizdoom.DoomGame()
    wad = Path(vizdoom.__file__).parent / ("freedoom2.wad" if level.startswith("MAP") else "freedoom1.wad")
    game.set_doom_game_path(str(wad))
    if skies is not None:
        game.add_game_args(f"-file {flat_skies(wad, skies / 'skies.wad')}")
    game.set_doom_map(level)
    game.set_window_visible(False)
    game.set_screen_resolution(vizdoom.ScreenResolution.RES_256X192)
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    for part in ("hud", "weapon", "crosshair", "messages", "screen_flashes", "decals", "particles"):
        getattr(game, f"set_render_{part}")(False)
    for part in ("depth_buffer", "labels_buffer", "objects_info", "sectors_info"):
        getattr(game, f"set_{part}_enabled")(True)
    game.add_game_args("+cl_capfps 1 +movebob 0")  # no frames between tics, whose moment the clock would set
    game.add_game_args("+cl_showsecretmessage 0 +con_midtime 0 +con_notifytime 0 +show_messages 0")
    button, variable = vizdoom.Button, vizdoom.GameVariable
    game.set_available_buttons([button.TURN_LEFT_RIGHT_DELTA, button.MOVE_FORWARD])
    game.set_available_game_variables([variable.VIEW_HEIGHT, variable.ANGLE, variable.POSITION_X, variable.POSITION_Y])
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_doom_skill(4)
    game.set_episode_timeout(0)
    game.set_seed(SEED)
    game.init()
    return game


class Level:
    """One map, in one engine, or in two where the second has flat skies."""

    def __init__(self, level: str, folder: Path | None) -> None:
        self.engines = [engine(level)] + ([engine(level, folder)] if folder else [])
        self.command("god", "notarget", *(f"remove {name}" for name in POWERS if folder is None))
        self.act(tics=10)
        state = self.engines[0].get_state()
        lines = [line for sector in state.sectors for line in sector.lines if line.is_blocking]
        self.walls = np.array([(line.x1, line.y1, line.x2, line.y2) for line in lines], float)

    def command(self, *commands: str) -> None:
        """Types console commands; they act at the next tic."""
        for game in self.engines:
            for command in commands:
                game.send_game_command(command)

    def act(self, turn: float = 0, forward: float = 0, tics: int = 1) -> bool:
        """One action; turn in degrees per tic, to the right. False when the map has ended."""
        for game in self.engines:
            game.make_action([turn, forward], tics)
        return not any(game.is_episode_finished() for game in self.engines)

    def targets(self) -> dict[str, list[tuple[float, float]]]:
        """Positions of objects by class, in a fixed order."""
        positions: dict[str, list[tuple[float, float]]] = {}
        for thing in self.engines[0].get_state().objects:
            if (group := group_of(thing.name)) is not None:
                positions.setdefault(group, []).append((thing.position_x, thing.position_y))
        return {group: sorted(positions[group]) for group in GROUPS if group in positions}

    def seen_from(self, eye: Any, target: Any) -> bool:
        """Whether no blocking line lies between two points or within 24 units of the first."""
        start, end = self.walls[:, :2], self.walls[:, 2:]
        along, ray = end - start, target - eye
        share = np.clip(((eye - start) * along).sum(1) / np.maximum((along**2).sum(1), 1), 0, 1)
        if (np.hypot(*(eye - start - share[:, None] * along).T) < 24).any():
            return False
        denominator = ray[0] * along[:, 1] - ray[1] * along[:, 0]
        denominator = np.where(denominator == 0, 1e-9, denominator)
        gap = start - eye
        here = (gap[:, 0] * along[:, 1] - gap[:, 1] * along[:, 0]) / denominator
        on_wall = (gap[:, 0] * ray[1] - gap[:, 1] * ray[0]) / denominator
        return not ((here > 0) & (here < 1) & (on_wall >= 0) & (on_wall <= 1)).any()

    def go(self, draw: np.random.Generator, turn: int) -> bool:
        """Puts the camera somewhere; the `turn`-th group of objects is looked at. False when that failed."""
        groups = self.targets()
        places = groups[list(groups)[turn % len(groups)]]
        target = np.array(places[int(draw.integers(len(places)))])
        distance, bearing = np.exp(draw.uniform(np.log(60), np.log(450))), draw.uniform(0, 2 * np.pi)
        eye = np.round(target + distance * np.array([np.cos(bearing), np.sin(bearing)]))
        aim = np.degrees(bearing + np.pi) + draw.uniform(-28, 28) if draw.random() < 0.75 else draw.uniform(0, 360)
        if not self.seen_from(eye, target):
            return False
        self.command(f"warp {eye[0]:.0f} {eye[1]:.0f}")
        if not self.act(tics=8):
            return False
        height, angle, x, y = self.engines[0].get_state().game_variables
        if height != 41 or np.hypot(x - eye[0], y - eye[1]) > 8:  # the place was taken or is a void
            return False
        return self.act(turn=float((angle - aim + 180) % 360 - 180)) and self.act(tics=2)

    def view(self) -> View:
        """What the camera sees; classes only where there are two engines."""
        state = self.engines[0].get_state()
        left = (WIDTH - HEIGHT) // 2
        colour, depth, labels = (
            values[:, left : left + HEIGHT] for values in (state.screen_buffer, state.depth_buffer, state.labels_buffer)
        )
        rgb = colour.reshape(SIZE, 3, SIZE, 3, 3).astype(float).mean((1, 3)).round().astype(np.uint8)
        depth = np.minimum(depth[1::3, 1::3], FAR).astype(int)
        view = View(rgb, ((5 * depth + 1) // 2).astype(np.uint8))
        if len(self.engines) == 1:
            return view
        other = self.engines[1].get_state()
        if (other.labels_buffer != state.labels_buffer).any() or (other.depth_buffer != state.depth_buffer).any():
            raise RuntimeError("the two engines see different things")
        painted = (other.screen_buffer[1::3, left + 1 : left + HEIGHT : 3] == SKY).all(2)
        sky = painted & (depth == FAR)  # MAP26 has a picture of the sky on a wall
        return classify(view, labels[1::3, 1::3], sky, state.labels)

    def close(self) -> None:
        """Ends the engines."""
        for game in self.engines:
            game.close()


def classify(view: View, labels: Any, sky: Any, things: Any) -> View:
    """Turns the engine's labels into classes: 0 is wall or sky, 1 floor or ceiling, the rest are objects.

    The camera is level, so a plane above the horizon is a ceiling and one below it a floor. Unknown objects get 255.
    """
    below = np.arange(SIZE)[:, None] >= SIZE // 2
    classes = np.where(labels == 0, np.where(sky, 3, 0), np.where(below, 1, 2)).astype(np.uint8)
    classes[labels > 1] = 255
    unknown = set()
    for thing in things:
        here = labels == thing.value
        if (group := group_of(thing.object_name)) is not None:
            classes[here] = CLASSES.index(group)
        elif here.any():
            unknown.add(thing.object_name)
    view.classes, view.unknown = classes, tuple(sorted(unknown))
    return view


def fault(view: View, kept: list[View]) -> str:
    """Why a view is not worth keeping beside those kept before; empty when it is."""
    if view.rgb.mean() < 28:
        return "dark"
    if view.depth.std() < 20 or (view.depth < 20).mean() > 0.35:
        return "wall"
    if any(np.abs(small(view) - small(other)).mean() < 9 for other in kept):
        return "twin"
    if view.classes is not None and (255 in view.classes or view.unknown):
        return "unknown"
    sky = False if view.classes is None else view.classes[40:] == CLASSES.index("sky")
    if ((view.depth[40:] == 255) & np.logical_not(sky)).any() or (view.depth[16:48] < 3).any():
        return "wrong depth"
    return ""


def small(view: View) -> Any:
    """8 x 8 mean brightnesses."""
    return view.rgb.astype(float).mean(2).reshape(8, 8, 8, 8).mean((1, 3))


def pictures(name: str, count: int, counts: Counter[str]) -> list[View]:
    """The views of one map."""
    views: list[View] = []
    draw = np.random.default_rng([SEED, *name.encode()])
    with tempfile.TemporaryDirectory() as folder:
        level = Level(name, Path(folder))
        turn, dead = 0, False
        while len(views) < count and turn < 200 * count:
            if len(views) >= 0.8 * count and not dead:
                level.command("kill monsters")
                dead = level.act(tics=70)
            turn += 1
            if not level.go(draw, turn):
                counts["no place"] += 1
                continue
            reason = fault(view := level.view(), views)
            counts.update([reason or "kept", *(f"unknown: {thing}" for thing in view.unknown)])
            if not reason:
                views.append(view)
        level.close()
    return views


def walk(level: Level, draw: np.random.Generator) -> list[View]:
    """One clip: turning, walking, or both, at a steady rate."""
    forward = float(draw.random() < 0.75)
    turn = float(draw.choice([-1, 1]) * draw.uniform(1.5, 4)) if not forward else float(draw.uniform(-2, 2))
    views = []
    for _ in range(CLIP_FRAMES):
        views.append(level.view())
        if not all(level.act(turn, forward) for _ in range(TICS)):
            return []
    return views


def clips(name: str, counts: Counter[str]) -> list[list[View]]:
    """The clips of one map; every frame must pass as a picture, and frames two apart must differ."""
    films: list[list[View]] = []
    draw = np.random.default_rng([SEED, 1, *name.encode()])
    level, turn = Level(name, None), 0
    while len(films) < CLIPS and (turn := turn + 1) < 4000:
        if not level.go(draw, turn - 1) or fault(level.view(), [film[0] for film in films]):
            continue
        views = walk(level, draw)
        still = any(np.abs(small(a) - small(b)).mean() < 2 for a, b in zip(views, views[2:], strict=False))
        if not views or still or any(fault(view, []) for view in views):
            counts["clips left out"] += 1
            continue
        films.append(views)
    level.close()
    return films


def write_clip(path: Path, frames: list[Any]) -> None:
    """An h264 file with one key frame, 17.5 frames a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        options = {"crf": "24", "preset": "veryslow", "g": str(CLIP_FRAMES), "threads": "1"}
        stream = file.add_stream("libx264", rate=Fraction(35, TICS), options=options)
        stream.width, stream.height, stream.pix_fmt = SIZE, SIZE, "yuv420p"
        for frame in frames:
            colour = frame if frame.ndim == 3 else np.repeat(frame[:, :, None], 3, 2)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(colour), "rgb24")))
        file.mux(stream.encode())


def save(target: Path, split: str, name: str, views: list[View]) -> list[tuple[str, str]]:
    """Writes the pictures of a map; returns the rows of labels.csv."""
    rows = []
    for number, view in enumerate(views):
        paths = [target / split / kind / name / f"{number:03}" for kind in ("rgb", "depth", "semseg")]
        for path in paths:
            path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(view.rgb).save(f"{paths[0]}.jpg", quality=88, optimize=True)
        Image.fromarray(view.depth).save(f"{paths[1]}.png", optimize=True)
        Image.fromarray(view.classes).save(f"{paths[2]}.png", optimize=True)
        pixels = np.bincount(view.classes.ravel(), minlength=len(CLASSES))[len(SURFACES) :]
        main_group = CLASSES[len(SURFACES) + int(pixels.argmax())] if pixels.max() >= LEAST else ""
        rows.append((f"{split}/rgb/{name}/{number:03}.jpg", main_group))
    return rows


def main() -> None:
    """All maps; prints what was left out and why."""
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "plugins/multimodal/mim_multimodal/sample"
    rows: list[tuple[str, str]] = []
    for split, names in (("train", TRAIN), ("test", TEST)):
        for name in names.split():
            counts = Counter[str]()
            views = pictures(name, FRAMES[split], counts)
            rows += save(target, split, name, views)
            films = clips(name, counts)
            for number, film in enumerate(films):
                for kind in ("rgb", "depth"):
                    frames = [getattr(view, kind) for view in film]
                    write_clip(target / "clips" / kind / split / name / f"{number:02}.mp4", frames)
            print(f"{split} {name}: {len(views)} pictures, {len(films)} clips; {dict(counts)}", flush=True)
    (target / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    with (target / "labels.csv").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("path", "group"), *rows])


if __name__ == "__main__":
    main()
