"""Makes the clips that mim-video ships: MetaWorld's scripted policies in twelve tasks, rendered on the CPU.

The tasks are six pairs with the same objects and opposite motions, so that one frame tells the pair and only the
motion tells the task. To make frames less telling still: the camera moves a little from clip to clip, clips start at
a random moment up to shortly before the task succeeds, and the markers that show the goal are hidden. Every clip is
another placement of the objects; training and test clips share none. Runs that fail are left out.

Needs: apt-get install libosmesa6; pip install metaworld==3.1.1 av packaging, in an environment of its own.
Run: MUJOCO_GL=osmesa PYOPENGL_PLATFORM=osmesa python tools/samples/metaworld_clips.py [FOLDER]   (five minutes)
Licences: MetaWorld MIT, MuJoCo Apache-2.0; copied beside the sample.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path
from typing import Any

import av
import mujoco
import numpy as np
from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as ENVIRONMENTS
from metaworld.policies import ENV_POLICY_MAP as POLICIES

TARGET = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[2] / "plugins/video/mim_video/sample"
PAIRS = (
    ("coffee-pull", "coffee-push"),
    ("door-close", "door-open"),
    ("drawer-close", "drawer-open"),
    ("faucet-close", "faucet-open"),
    ("handle-press", "handle-pull"),
    ("window-close", "window-open"),
)
SPLITS = {"train": (30, 0), "test": (10, 100_000)}
"""Clips per task, and the first seed."""
SIZE, FRAMES, STEPS_PER_FRAME = 96, 32, 2
FPS = 40  # the controller makes 80 steps a second
NOISE = 0.15
"""Deviation of the noise on the policy's actions, of which each lies in [-1, 1]."""


def make_task(name: str) -> tuple[Any, Any]:
    """The environment, which places its objects anew at every reset, and its renderer."""
    env = ENVIRONMENTS[f"{name}-v3-goal-observable"](seed=0)
    env._freeze_rand_vec = False
    env.model.vis.quality.offsamples = 0
    renderer = mujoco.Renderer(env.model, SIZE, SIZE)
    for flag in (mujoco.mjtRndFlag.mjRND_SHADOW, mujoco.mjtRndFlag.mjRND_REFLECTION):
        renderer.scene.flags[flag] = 0  # three quarters of the time, and nothing of the motion
    return env, renderer


def camera_for(draw: np.random.Generator) -> Any:
    """A view of the table from the robot's far left, a little different each time."""
    camera = mujoco.MjvCamera()
    camera.lookat[:] = np.array([0.0, 0.7, 0.12]) + draw.uniform(-0.04, 0.04, 3)
    camera.distance = draw.uniform(1.1, 1.4)
    camera.azimuth = 135 + draw.uniform(-15, 15)
    camera.elevation = -30 + draw.uniform(-8, 8)
    return camera


def run(name: str, env: Any, seed: int) -> tuple[list[Any], int | None]:
    """Positions of all joints and objects at every step, and the step at which the task first succeeded."""
    draw = np.random.default_rng(seed)
    env.seed(seed)
    observation, _ = env.reset()
    policy, states, success = POLICIES[f"{name}-v3"](), [], None
    for step in range(220):
        states.append((env.data.qpos.copy(), env.data.mocap_pos.copy(), env.data.mocap_quat.copy()))
        action = np.clip(policy.get_action(observation), -1, 1)
        action[:3] += draw.normal(0, NOISE, 3)
        observation, _, _, _, info = env.step(np.clip(action, -1, 1).astype(np.float32))
        if info["success"] and success is None:
            success = step
        if success is not None and step >= success + FRAMES * STEPS_PER_FRAME:
            break
    return states, success


def render(env: Any, renderer: Any, states: list[Any], success: int, draw: np.random.Generator) -> list[Any]:
    """The frames of one clip: it starts 24 to 74 steps before the success, if the run is that long."""
    first = max(0, success - int(draw.integers(24, 75)))
    camera, option = camera_for(draw), mujoco.MjvOption()
    option.sitegroup[:] = 0  # the markers of goals
    frames = []
    for step in range(first, first + FRAMES * STEPS_PER_FRAME, STEPS_PER_FRAME):
        env.data.qpos[:], env.data.mocap_pos[:], env.data.mocap_quat[:] = states[min(step, len(states) - 1)]
        mujoco.mj_forward(env.model, env.data)
        renderer.update_scene(env.data, camera=camera, scene_option=option)
        frames.append(renderer.render().copy())
    return frames


def write(path: Path, frames: list[Any]) -> None:
    """An h264 file with a key frame every 16 frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as file:
        options = {"crf": "27", "preset": "veryslow", "g": "16", "threads": "1"}
        stream = file.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = SIZE
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            file.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        file.mux(stream.encode())


def main() -> None:
    """All clips; prints how many runs failed."""
    warnings.simplefilter("ignore")  # policies ask for more than the arm can do, and MetaWorld says so every time
    for name in (task for pair in PAIRS for task in pair):
        env, renderer = make_task(name)
        failed = 0
        for split, (count, seed) in SPLITS.items():
            written = 0
            while written < count:
                states, success = run(name, env, seed)
                if success is None:
                    failed += 1
                else:
                    frames = render(env, renderer, states, success, np.random.default_rng([seed, 1]))
                    write(TARGET / split / name / f"{seed:06}.mp4", frames)
                    written += 1
                seed += 1
        renderer.close()
        print(f"{name}: {failed} failed runs left out", flush=True)


if __name__ == "__main__":
    main()
