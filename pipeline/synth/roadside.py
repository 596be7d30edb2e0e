"""What stands beside or above the road: trees, houses, lamps, rails, hedges, walls, signs and bridges."""

import cv2
import numpy as np

from pipeline.synth import texture
from pipeline.synth.brush import SHIFT, Brush
from pipeline.synth.camera import project
from pipeline.synth.scene import Roadside, Scene

STEEL, DARK_STEEL, POLE, BARK, CONCRETE = (158, 162, 164), (112, 116, 118), (96, 98, 100), (62, 52, 44), (146, 144, 138)
LAMP_ARM_M = 2.2
HOUSE_DEPTH_M = 14.0
FACADE_M = 16.0  # width and height of a facade tile


def draw_thing(scene: Scene, thing: Roadside, brush: Brush) -> None:
    draw = {
        "tree": draw_tree,
        "house": draw_house,
        "lamp": draw_lamp,
        "rail": draw_rail,
        "wall": draw_wall,
        "hedge": draw_wall,
        "sign": draw_sign,
        "bridge": draw_bridge,
    }[thing.kind]
    draw(scene, thing, brush)


def foot(scene: Scene, offset, s) -> np.ndarray:
    """World points of places on the ground."""
    return scene.terrain.lift(scene.road.plan(offset, s))


def upright(at: np.ndarray, left: float, right: float, low: float, high: float) -> np.ndarray:
    """A rectangle across the line of sight: offsets from a point, to the right and up."""
    return at + np.array([[left, low, 0], [right, low, 0], [right, high, 0], [left, high, 0]])


def fence(near: np.ndarray, far: np.ndarray, low: float, high: float) -> np.ndarray:
    """A rectangle along the road between two points on the ground."""
    return np.array([near + (0, low, 0), far + (0, low, 0), far + (0, high, 0), near + (0, high, 0)])


def draw_tree(scene: Scene, tree: Roadside, brush: Brush) -> None:
    base = foot(scene, tree.offset, tree.s)
    if base[2] < 3:
        return
    brush.fill(upright(base, -0.13, 0.13, 0, tree.height_m * 0.55), BARK)
    spread = tree.height_m * 0.42
    opposite = np.array([[-spread, 0.28 * tree.height_m, 0], [spread, tree.height_m, 0]])
    corners, _ = project(brush.matrix, base + opposite)
    (x0, y1), (x1, y0) = np.round(corners).astype(int)
    height, width = brush.canvas.shape[:2]
    a, b, c, d = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    if c - a < 1 or d - b < 1:
        return
    wide, tall, side = x1 - x0, y1 - y0, texture.CROWN
    if wide < side:
        grey, mask = (
            cv2.resize(part, (wide, tall), interpolation=cv2.INTER_AREA)[b - y0 : d - y0, a - x0 : c - x0]
            for part in texture.crowns()[tree.variant]
        )
    else:  # near crowns are larger than the image: only what is seen
        to_crown = np.array(
            [[side / wide, 0, (a - x0 + 0.5) * side / wide - 0.5], [0, side / tall, (b - y0 + 0.5) * side / tall - 0.5]]
        )
        grey, mask = (
            cv2.warpAffine(part, to_crown, (c - a, d - b), flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
            for part in texture.crowns()[tree.variant]
        )
    dark, bright = brush.haze(np.zeros(3), base[2]), brush.haze(np.array(tree.tint) * 255 / 128, base[2])
    colours = np.clip(dark + np.linspace(0, 1, 256)[:, None] * (bright - dark), 0, 255).astype(np.uint8)
    cv2.copyTo(
        cv2.LUT(cv2.merge([grey] * 3), colours[:, None]),
        cv2.threshold(mask, 127, 255, cv2.THRESH_BINARY)[1],
        brush.canvas[b:d, a:c],
    )


def draw_house(scene: Scene, house: Roadside, brush: Brush) -> None:
    near, far = foot(scene, house.offset, house.s), foot(scene, house.offset, house.s + house.length_m)
    if far[2] < 3.0:
        return
    if near[2] < 1.0:  # begins beside or behind the camera
        near = near + (far - near) * (1.0 - near[2]) / (far[2] - near[2])
    side = np.sign(house.offset)
    sunlit = scene.weather.shadows * side * np.sign(scene.weather.sun[0])
    behind = near + (side * HOUSE_DEPTH_M, 0, 0)
    for a, b, light in ((behind, near, 0.95 - 0.15 * sunlit), (near, far, 0.9 + 0.25 * sunlit)):
        repeats = float(np.linalg.norm((b - a)[[0, 2]]) / FACADE_M), house.height_m / FACADE_M
        paste_wall(
            fence(a, b, 0, house.height_m), texture.facades()[house.variant], repeats, np.array(house.tint) / 128 * light, brush
        )


def paste_wall(quad: np.ndarray, tile: np.ndarray, repeats: tuple[float, float], gain: np.ndarray, brush: Brush):
    """Draws a tile, repeated so many times across and up, into a world rectangle."""
    across, up = repeats
    pixels, depth = project(brush.matrix, quad)
    height, width = brush.canvas.shape[:2]
    x0, y0 = np.floor(np.clip(pixels.min(axis=0), 0, (width, height))).astype(int)
    x1, y1 = np.ceil(np.clip(pixels.max(axis=0), 0, (width, height))).astype(int)
    if depth.min() <= 0.3 or x1 - x0 < 1 or y1 - y0 < 1:
        return
    # A far wall takes a smaller tile, as an image pixel covers more of it.
    side = int(np.clip(2 ** np.round(np.log2(np.ptp(pixels[:, 1]) / max(up, 0.5))), 16, len(tile)))
    tile = cv2.resize(tile, (side, side), interpolation=cv2.INTER_AREA) * gain
    tile = np.clip(brush.haze(tile, depth.mean()), 0, 255).astype(np.uint8)
    wall = np.tile(tile, (int(np.ceil(up)), int(np.ceil(across)), 1))
    corners = np.array([[0, up], [across, up], [across, 0], [0, 0]]) * side - 0.5
    pixels = pixels - (x0, y0)
    to_image = cv2.getPerspectiveTransform(corners.astype(np.float32), pixels.astype(np.float32))
    seen = np.zeros((y1 - y0, x1 - x0), np.uint8)
    cv2.fillConvexPoly(seen, np.round(pixels * 2**SHIFT).astype(np.int32), 255, cv2.LINE_8, SHIFT)
    drawn = cv2.warpPerspective(wall, to_image, seen.shape[::-1], borderMode=cv2.BORDER_REPLICATE)
    cv2.copyTo(drawn, seen, brush.canvas[y0:y1, x0:x1])


def draw_lamp(scene: Scene, lamp: Roadside, brush: Brush) -> None:
    base = foot(scene, lamp.offset, lamp.s)
    if base[2] < 4:
        return
    top = base + (0, lamp.height_m, 0)
    brush.fill(upright(base, -0.07, 0.07, 0, lamp.height_m), POLE)
    arm = np.array([-lamp.variant * LAMP_ARM_M, 0.35, 0])
    brush.fill(np.array([top, top + arm, top + arm - (0, 0.1, 0), top - (0, 0.1, 0)]), POLE)


def lamp_head(scene: Scene, lamp: Roadside) -> np.ndarray:
    return foot(scene, lamp.offset, lamp.s) + (-lamp.variant * LAMP_ARM_M, lamp.height_m + 0.3, 0)


def draw_rail(scene: Scene, rail: Roadside, brush: Brush) -> None:
    near, far = foot(scene, rail.offset, rail.s), foot(scene, rail.offset, rail.s + rail.length_m)
    if far[2] >= 1.5:
        brush.fill(upright(near, -0.06, 0.06, 0, 0.7), DARK_STEEL)
        brush.fill(fence(near, far, 0.45, 0.75), STEEL)
        brush.fill(fence(near, far, 0.57, 0.62), DARK_STEEL)


def draw_wall(scene: Scene, wall: Roadside, brush: Brush) -> None:
    """A concrete barrier, or a hedge with an uneven top."""
    hedge = wall.kind == "hedge"
    s = np.linspace(wall.s + wall.length_m, wall.s, 7 if hedge else 2)
    feet = foot(scene, wall.offset, s)
    rough = 0.10 * np.sin(2.1 * s) + 0.06 * np.sin(5.3 * s) if hedge else np.zeros(2)
    tops = feet + np.stack([0 * s, wall.height_m + rough, 0 * s], -1)
    side = np.array([-np.sign(wall.offset) * (0.5 if hedge else 0.25), 0, 0])
    for k in range(len(s) - 1):
        if feet[k, 2] < 1.5:
            continue
        colour = np.array(wall.tint) * (1.0 + rough[k] + 0.15 * (k % 2)) if hedge else np.array(CONCRETE)
        brush.fill(np.array([feet[k + 1], feet[k], tops[k], tops[k + 1]]) + side, colour * 0.85)
        brush.fill(np.array([tops[k + 1] + side, tops[k] + side, tops[k] - side, tops[k + 1] - side]), colour * 1.2)


def draw_sign(scene: Scene, sign: Roadside, brush: Brush) -> None:
    """A gantry with blue or green boards over the lanes."""
    middle, half, height = foot(scene, sign.offset, sign.s), sign.width_m / 2 + 1.5, sign.height_m
    if middle[2] < 6:
        return
    for x in (-half, half):
        brush.fill(upright(middle, x - 0.15, x + 0.15, 0, height + 0.6), DARK_STEEL)
    brush.fill(upright(middle, -half, half, height + 0.2, height + 0.5), DARK_STEEL)
    board = ((20, 104, 72), (22, 66, 148))[sign.variant]
    for x in np.linspace(-half + 2.6, half - 2.6, max(1, int(sign.width_m / 4))):
        brush.fill(upright(middle, x - 1.6, x + 1.6, height - 1.0, height + 1.1), board)
        for y, short in ((-0.6, 0.5), (0.0, 0.0), (0.6, 0.8)):
            brush.fill(upright(middle, x - 1.2, x + 1.2 - short, height + y - 0.14, height + y + 0.14), (214, 218, 222))


def draw_bridge(scene: Scene, bridge: Roadside, brush: Brush) -> None:
    """A deck across the road on two rows of piers, seen from below."""
    near, far = foot(scene, 0.0, bridge.s), foot(scene, 0.0, bridge.s + bridge.length_m)
    if near[2] < 4:
        return
    left, right, low, high = -60.0, 60.0, bridge.height_m, bridge.height_m + 1.6
    colour = np.array(CONCRETE)
    for at in (far, near):
        for x in (scene.edges[0] - 2.0, scene.edges[1] + 2.0):
            brush.fill(upright(at, x - 0.6, x + 0.6, 0, low), colour * 0.7)
    below = np.concatenate([upright(near, left, right, low, low)[:2], upright(far, right, left, low, low)[:2]])
    brush.fill(below, colour * 0.38)
    brush.fill(upright(near, left, right, low, high), colour)
    brush.fill(upright(near, left, right, high, high + 0.9), colour * 0.85)
