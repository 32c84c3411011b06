"""Jodi Pose Keypoints: a pose drawing as ComfyUI's own keypoints."""

import torch
from comfy_api.latest import io

from ..jodi_core.pictures import load_picture
from ..jodi_core.pose import find_people

PoseKeypoint = io.Custom("POSE_KEYPOINT")    # the host's: a list of frames as OpenPose writes them
# Parts that a Jodi drawing does not have; the host's nodes expect them all the same.
OTHER_PARTS = {"foot_keypoints_2d": 6, "face_keypoints_2d": 70, "hand_right_keypoints_2d": 21,
               "hand_left_keypoints_2d": 21}


def keypoint_frame(picture_3HW: torch.Tensor) -> dict:
    """The people of one drawing (3, H, W) in [0, 1], in OpenPose's layout: x, y, score per joint in one flat list."""
    people = [{"pose_keypoints_2d": [value for joint in person for value in joint],
               **{part: [0.0] * 3 * count for part, count in OTHER_PARTS.items()}}
              for person in find_people(picture_3HW)]
    return {"canvas_width": picture_3HW.shape[2], "canvas_height": picture_3HW.shape[1], "people": people}


class JodiPoseKeypoints(io.ComfyNode):
    @classmethod
    def define_schema(cls):
        return io.Schema(
            node_id="JodiPoseKeypoints",
            display_name="Jodi Pose Keypoints",
            category="image/jodi",
            description="Reads the skeletons of an OpenPose drawing: 18 joints for each person. SDPose Draw Keypoints "
                        "draws them anew, cleanly and at any stroke width.",
            search_aliases=["openpose", "pose to keypoints", "skeleton", "pose json", "redraw pose", "dwpose"],
            inputs=[io.Image.Input("openpose", tooltip="A pose drawing, of Jodi Label Decode or from a file: dots and "
                                                       "limbs in the colours of OpenPose on black.")],
            outputs=[PoseKeypoint.Output("keypoints", tooltip="One frame per picture, in pixels; faces and hands are "
                                                              "not read.")],
        )

    @classmethod
    def execute(cls, openpose) -> io.NodeOutput:
        drawings_B3HW = load_picture(openpose.movedim(-1, 1)).cpu()
        return io.NodeOutput([keypoint_frame(picture_3HW) for picture_3HW in drawings_B3HW])
