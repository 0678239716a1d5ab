"""Scores on labelled data: mIoU as mmsegmentation computes it."""
