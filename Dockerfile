# One image for worker, beat, Flower, the page, the command and the demo's simulated LMS.
# The second stage holds an environment with what requirements/run.txt names and our wheel; no pip, no source.
FROM python:3.11.14-slim-bookworm AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv --without-pip /opt/license-expiry
WORKDIR /src
COPY requirements requirements
RUN pip --python /opt/license-expiry/bin/python install --require-hashes \
      -r requirements/run.txt -r requirements/build.txt
COPY . .
RUN pip --python /opt/license-expiry/bin/python install --no-deps --no-build-isolation . \
 && pip --python /opt/license-expiry/bin/python uninstall --yes setuptools

FROM python:3.11.14-slim-bookworm
# Beat's health check sees its schedule file's time, which the other kinds of dbm do not touch at each sync.
RUN python -c 'import dbm.gnu' \
 && useradd --uid 10001 --no-create-home --home-dir /tmp license-expiry \
 && install -d -o license-expiry -g license-expiry /var/lib/license-expiry
COPY --from=build /opt/license-expiry /opt/license-expiry
ENV PATH=/opt/license-expiry/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /var/lib/license-expiry
USER 10001:10001
# It costs a second of a processor: it asks over the broker, as everybody does who wants something of a worker.
HEALTHCHECK --interval=60s --timeout=30s --start-period=60s CMD python -m tasks.healthy
CMD ["celery", "-A", "worker", "worker", "--loglevel=INFO"]
