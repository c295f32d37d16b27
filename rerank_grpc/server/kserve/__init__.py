"""The Open Inference Protocol v2, which KServe and Triton speak: its service, its tensors, their bounds."""
