FROM debian
RUN apt-get update -q && apt-get install -qy --no-install-recommends redis-server \
 && install -d -o redis -g redis /data
VOLUME /data
WORKDIR /data
