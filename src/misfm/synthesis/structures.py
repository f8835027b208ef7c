"""The structures of generated anatomy and their label values; a side is a sign of the coordinate *left*."""

from __future__ import annotations

LEFT, RIGHT = 1.0, -1.0
LIVER, LEFT_KIDNEY, RIGHT_KIDNEY, SPINAL_CORD, AORTA = range(1, 6)
FAT, WALL, RIB, LEFT_LUNG, RIGHT_LUNG, HEART, STERNUM, SPLEEN, STOMACH, BOWEL = range(6, 16)
LEFT_PSOAS, RIGHT_PSOAS, PELVIS, BACK_MUSCLE, DISC, VERTEBRA, VENA_CAVA = range(16, 23)
BRAIN, CEREBELLUM, BRAINSTEM, SKULL, JAW, UPPER_JAW, LEFT_EYE, RIGHT_EYE, TONGUE = range(23, 32)
LEFT_PAROTID, RIGHT_PAROTID, LEFT_SUBMANDIBULAR, RIGHT_SUBMANDIBULAR, THYROID = range(32, 37)
LEFT_CHEWING, RIGHT_CHEWING, LEFT_NECK_MUSCLE, RIGHT_NECK_MUSCLE = range(37, 41)
PHARYNX, LARYNX, OESOPHAGUS, CAROTID, SHOULDER = range(41, 46)
KIDNEYS = {LEFT: LEFT_KIDNEY, RIGHT: RIGHT_KIDNEY}
LUNGS = {LEFT: LEFT_LUNG, RIGHT: RIGHT_LUNG}
PSOAS_MUSCLES = {LEFT: LEFT_PSOAS, RIGHT: RIGHT_PSOAS}
EYES = {LEFT: LEFT_EYE, RIGHT: RIGHT_EYE}
PAROTIDS = {LEFT: LEFT_PAROTID, RIGHT: RIGHT_PAROTID}
SUBMANDIBULARS = {LEFT: LEFT_SUBMANDIBULAR, RIGHT: RIGHT_SUBMANDIBULAR}
CHEWING_MUSCLES = {LEFT: LEFT_CHEWING, RIGHT: RIGHT_CHEWING}
NECK_MUSCLES = {LEFT: LEFT_NECK_MUSCLE, RIGHT: RIGHT_NECK_MUSCLE}
NUM_ORGANS, NUM_STRUCTURES = AORTA, SHOULDER
"""How many organs of the trunk and, these included, structures have labels; air, windpipe, the fat between
organs and the fluid around brain stem and spinal cord are background."""
ORGAN_NAMES = {
    LIVER: "liver",
    LEFT_KIDNEY: "left_kidney",
    RIGHT_KIDNEY: "right_kidney",
    SPINAL_CORD: "spinal_cord",
    AORTA: "aorta",
}
"""Label values and names of the organs of a trunk; other structures have the values after them."""
