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
RUN useradd --uid 10001 --no-create-home --home-dir /tmp license-expiry \
 && install -d -o license-expiry -g license-expiry /var/lib/license-expiry
COPY --from=build /opt/license-expiry /opt/license-expiry
ENV PATH=/opt/license-expiry/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1
WORKDIR /var/lib/license-expiry
USER 10001:10001
# Worker and beat: complains of a process that has noted for 5 minutes nothing, or that something is wrong (tasks/alive.py).
HEALTHCHECK --interval=60s --start-period=60s \
  CMD ! find /tmp/license-expiry-* -type f \( -mmin +5 -o -size +0 \) -print -exec cat {} + | grep .
CMD ["celery", "-A", "worker", "worker", "--loglevel=INFO"]
