"""Trained networks on other people's pictures: `media` read, `outputs` written, `onnx` exported."""
