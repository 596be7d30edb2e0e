"""What people call the scores that an evaluation writes."""

WORDS = {
    "culane_f1": "F1",
    "culane_f1_30": "F1 at IoU 0.3",
    "llamas_map": "mAP",
    "apolloscape_miou": "official mean IoU",
    "cityscapes_miou": "official mean IoU",
    "mean_iou": "mean IoU",
}
