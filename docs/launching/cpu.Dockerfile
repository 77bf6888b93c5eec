# docker build -f docs/launching/cpu.Dockerfile -t samestep .
# docker run --rm -v "$PWD/runs:/samestep/runs" samestep python -m experiments.train digits_cnn
FROM python:3.13-slim
WORKDIR /samestep
COPY . .
RUN python -m pip install --no-cache-dir --constraint constraints.txt --editable .
CMD ["python", "-m", "experiments.demo"]
