ARG BASE=python:3.11-slim

FROM ${BASE} AS build
WORKDIR /src
RUN python3 -m venv /opt/build && python3 -m venv /opt/venv
# What changes seldom comes first. Every file is checked against its hash, the build's own tools too.
COPY requirements/build.txt requirements/run.txt requirements/
RUN /opt/build/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/build.txt \
 && /opt/venv/bin/pip install --no-cache-dir --no-deps --require-hashes -r requirements/run.txt
COPY pyproject.toml README.md ./
COPY operator operator
RUN /opt/build/bin/hatchling build -t wheel -d /src/dist \
 && /opt/venv/bin/pip install --no-cache-dir --no-deps --no-index /src/dist/*.whl \
 && /opt/venv/bin/pip check \
 && /opt/venv/bin/pip uninstall --yes --quiet pip setuptools

FROM ${BASE}
COPY --from=build /opt/venv /opt/venv
# USER, because the number below (or the one that a platform chooses) has no name in /etc/passwd, and libraries ask for one.
ENV PATH=/opt/venv/bin:${PATH} PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1 USER=canaryrollout HOME=/tmp
# A number, so that Kubernetes can see by itself that it is not root.
USER 65532:65532
EXPOSE 8080
ENTRYPOINT ["python", "-m", "canaryrollout"]
CMD ["run"]
