# The server for other tools, and every other command, on a CPU. docs/deploy.md says how it is built and run.
FROM python:3.12-slim AS build

# Where pip finds the build of torch for CPUs; without it PyTorch's usual one, which brings gigabytes for GPUs.
ARG TORCH_INDEX=""
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1
RUN python -m venv /opt/sam-med2d
ENV PATH=/opt/sam-med2d/bin:$PATH
COPY requirements.txt /source/
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} "$(grep ^torch== /source/requirements.txt)"
COPY pyproject.toml README.md LICENSE /source/
COPY sam_med2d /source/sam_med2d
COPY segment_anything /source/segment_anything
RUN pip install "/source[serve,data,app,deploy]"

FROM python:3.12-slim
COPY --from=build /opt/sam-med2d /opt/sam-med2d
ENV PATH=/opt/sam-med2d/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 annotator
USER annotator
WORKDIR /home/annotator
EXPOSE 1527
ENTRYPOINT ["sam-med2d"]
CMD ["serve", "--host", "0.0.0.0", "--port", "1527"]
