# docker build -f docs/launching/cuda.Dockerfile -t samestep-cuda .
# docker run --rm --gpus all -v "$PWD/runs:/samestep/runs" samestep-cuda python -m experiments.train cifar10_resnet18
# The packages bring CUDA's libraries; the host has the driver and NVIDIA's container toolkit.
FROM python:3.13-slim
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
WORKDIR /samestep
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt --editable ".[cuda12]"
CMD ["python", "-m", "experiments.demo"]
