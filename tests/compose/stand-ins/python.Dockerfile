FROM debian
RUN apt-get update -q && apt-get install -qy --no-install-recommends python3 python3-gdbm python3-pip python3-venv \
 && ln -s python3 /usr/bin/python && rm -rf /var/lib/apt/lists/*
COPY ca-certificates.crt /etc/ssl/certs/
COPY pip.conf /etc/
